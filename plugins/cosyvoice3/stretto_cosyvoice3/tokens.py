"""Names of the tokens that CosyVoice 3 adds to the Qwen tokenizer, in id order.

The release contains only the Qwen tokenizer; the names come from `CosyVoice3Tokenizer` in
https://github.com/FunAudioLLM/CosyVoice (Apache-2.0). They stand for sounds, ARPAbet phonemes and parts of pinyin.
"""

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer

from stretto.errors import shown
from stretto_cosyvoice3.family import SOUNDS

END_OF_PROMPT = "<|endofprompt|>"
MARKERS = (END_OF_PROMPT, "<|endofsystem|>")  # ids that no text contains
ARPABET = (
    "AA AA0 AA1 AA2 AE AE0 AE1 AE2 AH AH0 AH1 AH2 AO AO0 AO1 AO2 AW AW0 AW1 AW2 AY AY0 AY1 AY2 B CH D DH EH EH0 "
    "EH1 EH2 ER ER0 ER1 ER2 EY EY0 EY1 EY2 F G HH IH IH0 IH1 IH2 IY IY0 IY1 IY2 JH K L M N NG OW OW0 OW1 OW2 OY "
    "OY0 OY1 OY2 P R S SH T TH UH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
).split()
PINYIN = (
    "a ai an ang ao b c ch d e ei en eng f g h i ian in ing iu ià iàn iàng iào iá ián iáng iáo iè ié iòng ióng iù "
    "iú iā iān iāng iāo iē iě iōng iū iǎ iǎn iǎng iǎo iǒng iǔ j k l m n o ong ou p q r s sh t u uang ue un uo uà "
    "uài uàn uàng uá uái uán uáng uè ué uì uí uò uó uā uāi uān uāng uē uě uī uō uǎ uǎi uǎn uǎng uǐ uǒ vè w x y z "
    "zh à ài àn àng ào á ái án áng áo è èi èn èng èr é éi én éng ér ì ìn ìng í ín íng ò òng òu ó óng óu ù ùn ú ún "
    "ā āi ān āng āo ē ēi ēn ēng ě ěi ěn ěng ěr ī īn īng ō ōng ōu ū ūn ǎ ǎi ǎn ǎng ǎo ǐ ǐn ǐng ǒ ǒng ǒu ǔ ǔn ǘ ǚ ǜ"
).split()
ADDED = (MARKERS[0], *SOUNDS, MARKERS[1], *(f"[{name}]" for name in (*ARPABET, *PINYIN)))


def with_added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Add the tokens to a tokenizer, and return their ids by name.

    Tags are recognised in any text. Markers are special tokens, so that no text contains their ids.
    """
    values: dict[str, Any] = {"normalized": False}
    for name in ADDED:
        tokenizer.add_tokens([AddedToken(name, special=name in MARKERS, **values)])
    ids = tokenizer.get_vocab()
    return {name: ids[name] for name in ADDED}


def write_cmu(phonemes: str) -> str:
    """Return phonemes as tokens, such as `[HH][AH0][L][OW1]`."""
    return "".join(f"[{symbol}]" for symbol in phonemes.split())


INITIAL = re.compile(r"(?:[zcs]h|[bpmfdtnlgkhjqxrzcsyw])?")
TONES = {"a": "āáǎà", "e": "ēéěè", "i": "īíǐì", "o": "ōóǒò", "u": "ūúǔù", "ü": "ǖǘǚǜ"}


def write_pinyin(phonemes: str) -> str:
    """Return syllables as tokens of initial and final, such as `[n][ǐ][h][ǎo]` for `ni3 hao3`.

    Raises:
        ValueError: The model has no token for a part of a syllable.
    """
    tokens = list[str]()
    for syllable in phonemes.split():
        match = INITIAL.match(syllable)
        initial = match.group() if match else ""
        final = _with_tone(syllable[len(initial) : -1].replace("v", "ü"), int(syllable[-1]))
        parts = [sound for sound in (initial, final) if sound]
        if unknown := [sound for sound in parts if sound not in PINYIN]:
            raise ValueError(f"syllables that the model has tokens for, got {shown(unknown[0])} in {syllable}")
        tokens += parts
    return "".join(f"[{token}]" for token in tokens)


def _with_tone(final: str, tone: int) -> str:
    """Return a pinyin final with its tone's mark: on a, e, the o of ou, or else the last vowel."""
    at = next((final.find(vowels) for vowels in ("a", "e", "ou") if vowels in final), -1)
    if at < 0:
        at = max((final.rfind(vowel) for vowel in "iouü"), default=-1)
    if at >= 0 and tone < 5:
        final = final[:at] + TONES[final[at]][tone - 1] + final[at + 1 :]
    return final.replace("üe", "ve").replace("üè", "vè").replace("üé", "vé")
