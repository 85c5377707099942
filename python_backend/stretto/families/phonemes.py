"""Phonetic alphabets that several families read, each in its own notation."""

import re

from stretto.errors import shown

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
CMU = frozenset([*CONSONANTS, *VOWELS, *(f"{vowel}{stress}" for vowel in VOWELS for stress in range(3))])
SYLLABLE = re.compile(r"[a-zü]{1,6}[1-5]")


def cmu_symbols(phonemes: str) -> list[str]:
    """Return the symbols of the CMU dictionary in `phonemes`, such as `S IY1`; raise ValueError if one is unknown."""
    symbols = phonemes.split()
    for symbol in symbols:
        if symbol not in CMU:
            raise ValueError(f"symbols of the CMU dictionary, such as HH AH0 L OW1, got {shown(symbol)}")
    return symbols


def pinyin_syllables(phonemes: str) -> list[str]:
    """Return the syllables of pinyin with tones in `phonemes`, such as `ni3 hao3`; raise ValueError for others."""
    syllables = phonemes.split()
    for syllable in syllables:
        if not SYLLABLE.fullmatch(syllable):
            raise ValueError(f"syllables of pinyin with tones, such as ni3 hao3, got {shown(syllable)}")
    return syllables
