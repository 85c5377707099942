"""Phonemes of a pronunciation dictionary in CosyVoice 3's notation."""

import pytest

from stretto.family.plugin import read_family
from stretto.family.pronunciations import spelling
from stretto_contract.pronunciation import DictionaryEntry

FAMILY = read_family({"speech_family": "cosyvoice3"})


@pytest.mark.parametrize(
    ("alphabet", "phonemes", "expected"),
    [
        ("cmu", "HH AH0 L OW1", "[HH][AH0][L][OW1]"),
        ("pinyin", "chong2 nü3 lüe4 er2 de5 jiu3", "[ch][óng][n][ǚ][l][vè][ér][d][e][j][iǔ]"),
    ],
)
def test_phonemes_are_written_in_brackets(alphabet: str, phonemes: str, expected: str) -> None:
    assert spelling(DictionaryEntry("a", phonemes, alphabet), FAMILY) == expected


@pytest.mark.parametrize(("alphabet", "phonemes"), [("pinyin", "ni3 nü1"), ("ipa", "a")])
def test_unknown_phonemes_are_refused(alphabet: str, phonemes: str) -> None:
    with pytest.raises(ValueError, match=", got "):
        spelling(DictionaryEntry("a", phonemes, alphabet), FAMILY)
