"""The tokenizers of a Magpie release, with small dictionaries of made-up pronunciations."""

from typing import Any

MODULE = "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers"
BYTES = {"_target_": "AutoTokenizer", "pretrained_model": "google/byt5-small"}
# Contents of the dictionaries by name.
FILES = {
    "english.dict": """;;; Words, each with a pronunciation.
'TIL  ˈtɪl
A  ˈeɪ
CAT  ˈkæt
CLASS  ˈkɫæs
DOG  ˈdɔɡ
DON'T  ˈdoʊnt
DOOR  ˈdɔɹ
GARDEN  ˈɡɑɹdən
HELLO  həˈɫoʊ
HELLO(1)  hɛˈɫoʊ
IS  ˈɪz
MOTHER-IN-LAW  ˈməðɝɪnˌɫɔ
OPEN  ˈoʊpən
READ  ˈɹid
READ(1)  ˈɹɛd
THE  ðə
THE(1)  ði
WELL  ˈwɛɫ
""",
    "english.heteronyms": "read\nwind\n",
    "spanish.dict": "HOLA  ˈola\nMUNDO  mˈundo\nNIÑO  nˈiɲo\nNIÑO(1)  nˈino\nLA\tla\nPUERTA  pwˈeɾta\n",
    "german.dict": """Haus  hˈaʊs
der  dˈeːɾ
Müller  mˈYlɐ
Straße  ʃtɾˈaːsə
USA  uːɛsˈʔaː
haus  hˈaUs
API  ˈeɪpiˈaɪ
""",
    "german.heteronyms": "API\n",
    "portuguese.dict": "OLÁ  olˈa\nMUNDO  mˈũdʊ\nMUNDO(1)  mˈundu\n",
    "hindi.dict": "नमस्ते  nəmˈəsteː\nदुनिया  dˈʊnɪjaː\n",
    "hindi_english.dict": "HELLO  həlˈo\nदुनिया  dʊnɪjˈaː\n",
}


def phonemes(name: str, locale: str = "", **g2p: Any) -> dict[str, Any]:
    """Return the config of a language's tokenizer, whose dictionary is `NAME.dict`."""
    in_language = {"locale": locale} if locale else {}
    return {
        "_target_": f"{MODULE}.IPATokenizer",
        **in_language,
        "punct": True,
        "apostrophe": True,
        "pad_with_space": bool(locale),
        "g2p": {
            "_target_": "nemo.collections.tts.g2p.models.i18n_ipa.IpaG2p",
            **in_language,
            "phoneme_dict": f"nemo:{name}.dict",
            "phoneme_probability": 0.8,
            "ignore_ambiguous_words": False,
            "use_chars": True,
            "use_stresses": True,
            **g2p,
        },
    }


TOKENIZERS: dict[str, Any] = {
    "english_phoneme": phonemes("english", heteronyms="nemo:english.heteronyms"),
    "text_ce_tokenizer": BYTES,
    "spanish_phoneme": phonemes("spanish", "es-ES"),
    "german_phoneme": phonemes(
        "german", "de-DE", heteronyms="nemo:german.heteronyms", grapheme_case="mixed", grapheme_prefix="#"
    ),
    "mandarin_phoneme": {"_target_": f"{MODULE}.ChinesePhonemesTokenizer"},
    "japanese_phoneme": {"_target_": f"{MODULE}.JapanesePhonemeTokenizer"},
    "portuguese_Brazilian_phoneme": {
        **phonemes("portuguese", "pt-BR", grapheme_prefix="#", ignore_ambiguous_words=True),
        "locale_specific_punct": False,
    },
    "hindi_phoneme": phonemes("hindi", "hi-IN", phoneme_dict=["nemo:hindi.dict", "nemo:hindi_english.dict"]),
    "arabic_AE_chartokenizer": {"_target_": f"{MODULE}.ArabicCharsTokenizer", "charset_version": 1},
    "french_chartokenizer": BYTES,
    "italian_chartokenizer": BYTES,
}
LANGUAGES = {
    "en": ["english_phoneme"],
    "es": ["spanish_phoneme"],
    "de": ["german_phoneme"],
    "zh": ["mandarin_phoneme"],
    "ja": ["japanese_phoneme"],
    "pt-BR": ["portuguese_Brazilian_phoneme"],
    "hi": ["hindi_phoneme"],
    "ar-AE": ["arabic_AE_chartokenizer"],
    "fr": ["french_chartokenizer"],
    "it": ["italian_chartokenizer"],
}
# Texts of each language that the tokenizers treat in different ways.
TEXTS = {
    "en": [
        "Hello, the garden door is open.",
        "  two  spaces, an unknown word and ümläuts “quoted” ",
        "The dog's doors; the cat's class's classes, cats' dogs.",
        "Read the wind. don't 'til mother-in-law dog-cat -well- well--a 42 dogs, 3-4",
        "|ˈ k ɑ| is a |cat| and | one bar é ß ﬁ",
        "it’s THE s S's 's t's",
    ],
    "es": ["¡Hola, mundo! «niño» la puerta", "Holas NIN\u0303O d’a 12,5 xyz-hola |h o|", "-"],
    "de": [
        "Das Haus der Müller, straße STRASSE Straße.",
        "USA usa API HAUS haus „Haus“ – 3 Häuser, 4-5",
        "der-Haus |#H|",
    ],
    "pt-BR": ["Olá, mundo… “olá” l'ola mundos 7"],
    "hi": ["नमस्ते दुनिया। hello Hello॥ अ-आ |ə|"],
    "fr": ["Élève, ça va ?"],
    "it": ["Perché no? 👋"],
}
