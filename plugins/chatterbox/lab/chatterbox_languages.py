"""Generate a test fixture with token ids from Chatterbox's reference `MTLTokenizer` in its 23 languages.

    CHATTERBOX_SRC=src/chatterbox python -m plugins.chatterbox.lab.chatterbox_languages \\
        plugins/chatterbox/tests/data/chatterbox_languages.json

CHATTERBOX_SRC is the folder that `plugins.chatterbox.lab.chatterbox_replies` describes. pykakasi 2.3.0 and spacy-pkuseg
1.0.2 must be importable. Instead of spacy-pkuseg's default model, which is a download, both sides use one that is
trained here on the fixture's Chinese sentences. The tokenizer file and the table of Cangjie codes come from the small
randomly initialised release. Each sentence is also tokenized by the server's code with the same packages. The fixture's
Chinese words come from the trained model, and its Japanese words and readings from pykakasi.
"""

import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lab.authors.reply_fixture import Replies, equal_in, run
from plugins.chatterbox.lab.chatterbox_replies import empty_packages, even, reference_tokenizer
from plugins.chatterbox.lab.random_chatterbox import MULTILINGUAL
from stretto.family.prompting import Manner, Piece
from stretto.family.text import TOKENIZER_FILE, TextTokenizer
from stretto_chatterbox.convert import MULTILINGUAL_TOKENIZER
from stretto_chatterbox.family import END_OF_TEXT, START_OF_TEXT, chatterbox
from stretto_chatterbox.languages import LANGUAGES, chinese_model, open_languages
from stretto_chatterbox.prompt import ChatterboxTemplate

CHINESE = (
    "你好|，|今天|天气|真|不错",
    "希望|你|有|一个|愉快|的|周末|。",
    "他|说|中文|很|好|！",
    "北京|图书馆|在|哪里|？",
    "我们|明天|见| ok| 3",
)  # a bar separates words
SENTENCES = {
    "ar": ("مرحبا بكم في المدينة.", "أين المكتبة؟", "شُكْرًا جَزِيلًا", "الطقس جميل اليوم، أليس كذلك؟", "٣ كتب و 12 قلمًا"),
    "da": (
        "Hvor er biblioteket?",
        "Rødgrød med fløde",
        "Æblet er på bordet…",
        "Vi ses i morgen kl. 7",
        "Å, det var sjovt!",
    ),
    "de": (
        "Der Fuchs springt über den Hund.",
        "Straße, Größe, Äpfel",
        "„Guten Tag“ – sagte sie",
        "ÜBER 100 %?",
        "Na ja; vielleicht",
    ),
    "el": ("Καλημέρα, τι κάνεις;", "Πού είναι η βιβλιοθήκη", "ΑΘΗΝΑ ΣΗΜΕΡΑ", "Ευχαριστώ πολύ!", "Ο σκύλος - η γάτα"),
    "en": (
        "Hello,  world",
        "it's twenty past nine",
        "“Well”… maybe: no; yes",
        "An owl in the tower ?",
        "naïve café №5",
    ),
    "es": ("¿Dónde está la biblioteca?", "El niño comió piña", "¡Qué día!", "mañana — quizá", "Vale, vale..."),
    "fi": ("Missä on kirjasto?", "Yö ja päivä", "Hyvää huomenta!", "Äiti osti kaksi kiloa omenoita", "ei; kyllä"),
    "fr": ("Où est la gare ? Là-bas…", "L’été, c’est bien", "Garçon, un café !", "Noël à Évry", "œuf et cœur"),
    "he": ("שלום, מה שלומך?", "איפה הספרייה", "תּוֹדָה רַבָּה", "להתראות!", "יש לי 3 ספרים"),
    "hi": ("नमस्ते, आप कैसे हैं?", "पुस्तकालय कहाँ है।", "धन्यवाद", "क़लम और ज़मीन", "मेरे पास 3 किताबें हैं!"),
    "it": ("Dov'è la biblioteca?", "Perché no?", "Città e virtù", "Buongiorno: come va", "L'albero è là"),
    "ja": ("今日はいい天気ですね。", "カタカナと漢字", "学校は東京へ行く", "ありがとう!", "葉は緑、部屋へどうぞ"),
    "ko": ("안녕하세요, 만나서 반갑습니다.", "도서관이 어디에 있어요?", "감사합니다!", "값과 삶", "ㅋㅋ 좋아요 3개"),
    "ms": ("Di mana perpustakaan?", "Selamat pagi!", "Terima kasih banyak", "Kanak-kanak itu tidur", "ya... tidak"),
    "nl": ("Waar is de bibliotheek?", "Één ijsje, alsjeblieft", "Goedemorgen!", "'s Ochtends regent het", "coöperatie"),
    "no": ("Hvor er biblioteket?", "Blåbær på fjellet", "God natt!", "Øya er vakker", "Nei - jo; kanskje"),
    "pl": ("Gdzie jest biblioteka?", "Zażółć gęślą jaźń", "Dzień dobry!", "ŁÓDŹ", "pięć, sześć… siedem"),
    "pt": ("Onde fica a biblioteca?", "Não, obrigado", "Coração e pão", "Amanhã às 7", "Está bem; até já"),
    "ru": ("Привет, как дела?", "Где библиотека", "Ёлка и йод", "СПАСИБО!", "Мы — друзья: да"),
    "sv": ("Var ligger biblioteket?", "Räksmörgås på ön", "God morgon!", "Ål och ägg", "kanske… nej"),
    "sw": ("Maktaba iko wapi?", "Asante sana", "Habari za asubuhi!", "Ng'ombe wawili", "ndiyo; hapana"),
    "tr": ("Kütüphane nerede?", "İstanbul'da ılık ığdır", "Günaydın!", "Çok güzel şey", "ağaç ve göz"),
    "zh": tuple(each.replace("|", "") for each in CHINESE),
}


def train_segmenter(home: Path) -> None:
    """Train spacy-pkuseg's default model on `CHINESE` in the folder `home`; call this before the package is imported.

    The training is random, but it finds all words of its sentences. These are written as the tokenizer passes them to
    the package, also with the full stop that it adds to a sentence without one.
    """
    os.environ["PKUSEG_HOME"] = str(home)
    import spacy_pkuseg

    words = home / "words.txt"
    lines = [unicodedata.normalize("NFKD", each).replace("|", " ") + end for each in CHINESE for end in ("", " .")]
    words.write_text("\n".join(lines))
    spacy_pkuseg.train(str(words), str(words), str(chinese_model()))
    chinese_model().with_suffix(".zip").touch()  # the package downloads its model if this file is missing


def our_template(folder: Path) -> ChatterboxTemplate:
    """Return the server's template with the small release's files in `folder` and the installed packages."""
    (folder / TOKENIZER_FILE).write_text((folder / MULTILINGUAL_TOKENIZER).read_text())
    tokenizer = TextTokenizer.at(folder, spells_bytes=False)
    tokens = {name: token_id for token_id, name in tokenizer.tokens.items()}
    return ChatterboxTemplate(
        chatterbox(MULTILINGUAL), MULTILINGUAL, tokenizer, languages=open_languages(folder, tokens)
    )


def ids_of(template: ChatterboxTemplate, text: str, language: str) -> list[int]:
    """Return the token ids that the server's code gives for a text."""
    family = chatterbox(MULTILINGUAL)
    piece = Piece("user", "text", text=text)
    rows = template.write(family.tasks[0], (piece,), "default", Manner(language=language)).rows
    return rows[MULTILINGUAL.num_voice_rows : -2, 0].tolist()


def tokenized() -> Iterator[dict[str, Any]]:
    """For each sentence, yield the reference ids and the words that a package found in it."""
    import pykakasi

    empty_packages()
    kakasi = pykakasi.kakasi()
    with TemporaryDirectory() as name:
        folder = Path(name)
        train_segmenter(folder)
        theirs = reference_tokenizer(folder)
        ours = our_template(folder)
        for language in LANGUAGES:
            for text in SENTENCES[language]:
                evened = even(text, "mtl_tts.py")
                wanted = [START_OF_TEXT, *theirs.encode(evened, language), END_OF_TEXT]
                assert ids_of(ours, text, language) == wanted, (language, text)
                prepared = unicodedata.normalize("NFKD", evened.lower())
                case: dict[str, Any] = {"language": language, "text": text}
                if language == "zh":
                    case["words"] = theirs.cangjie_converter.segmenter.cut(prepared)
                elif language == "ja":
                    case["words"] = [{"orig": each["orig"], "hira": each["hira"]} for each in kakasi.convert(prepared)]
                yield case | {"ids": wanted}


def write(fixture: Path, made: Replies) -> None:
    """Write the fixture."""
    fixture.write_text(json.dumps({"replies": made}) + "\n")
    print(len(made), "sentences,", sum(len(each["ids"]) for each in made), "ids")


def main() -> None:
    """Write the fixture, or check an existing one."""
    run(__doc__, lambda: list(tokenized()), write, equal_in("language", "text", "ids"))


if __name__ == "__main__":
    main()
