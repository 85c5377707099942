"""Texts are cleaned as by MOSS-TTS's processor, and recordings levelled."""

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_replies import TEXTS, stored
from stretto_moss.moss_tts.cleaning import cleaned
from stretto_moss.moss_tts.family import LANGUAGES
from stretto_moss.moss_tts.prompt import levelled


def test_recordings_are_levelled() -> None:
    assert levelled(np.ones(100, np.float32))[0] == pytest.approx(10 ** (-3 / 20)), "the gain is limited"
    assert levelled(np.full(100, 0.09, np.float32))[0] == pytest.approx(0.1), "-20 dB"


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_texts_are_cleaned_as_there(number: int) -> None:
    assert cleaned(TEXTS[number]) == stored()["texts"][number]


def test_names_that_were_set_aside_return_once() -> None:
    """Otherwise, names that contain the placeholder of the next one twice would double the text with each of them."""
    names = [f"https://a/___PROT{number + 1}______PROT{number + 1}___" for number in range(12)]
    assert len(cleaned(" ".join(names))) <= len(" ".join(names))
    assert cleaned("see #https://example.org/a now") == "see #https://example.org/a now"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("___PROT0___ a.b", "___PROT0___ a.b"),
        ("___PROT1___ a.b" + " ___PROT0___" * 9 + " c.d", "___PROT1___ a.b" + " ___PROT0___" * 9 + " c.d"),
        ("\U000f0000\U000f0001\ue000 a.b", "a.b"),
        ("#u/name 中a.b中", "#u/name 中 a.b 中"),
    ],
    ids=["one", "many", "private use", "name in a tag"],
)
def test_each_name_is_put_back_once(text: str, expected: str) -> None:
    """Also if a text contains the placeholder that the authors' processor writes for a name."""
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("好。《甲", "好。《甲"),
        ("好。【甲", "好。【甲"),
        ("好。《甲》。【乙", "好。甲。【乙"),
        ("《甲》乙《丙》", "《甲》乙《丙》"),
        ("好。《甲《乙》丙》", "好。《甲《乙》丙》"),
        ("\ue000《甲》", "甲"),
    ],
)
def test_brackets_that_nothing_closes_stay(text: str, expected: str) -> None:
    assert cleaned(text) == expected


def test_languages_are_those_of_the_authors_demo() -> None:
    assert len(LANGUAGES) == 31
    assert LANGUAGES["persian"] == "Persian (Farsi)"
    assert LANGUAGES["french"] == "French"
