"""Texts of the training speech."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from training.tiny import prose
from training.tiny.words import load_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(botany) a tall plant; grows fast", "a tall plant, grows fast"),
        ("a well-known man", "a well known man"),
        ("in 1900", None),
        ("the U.S. army", None),
        ("the BBC", None),
        ("I saw it", "I saw it"),
    ],
)
def test_prose_keeps_sentences_without_signs_and_abbreviations(text: str, expected: str | None) -> None:
    assert prose.readable(text) == expected


def test_wordnet_is_read_without_its_licence(tmp_path: Path) -> None:
    lines = ['  1 This software | "is provided"', '00001 03 n | a big dog; "the dog barked"; "he ran (fast) home"']
    (tmp_path / "data.noun").write_text("\n".join(lines))
    assert prose.wordnet(tmp_path) == (["the dog barked", "he ran home"], ["a big dog"])


def test_long_texts_have_the_wanted_length() -> None:
    rng = random.Random(0)
    for _ in range(20):
        assert 120 <= len(" ".join(prose.long_text(["one two", "a longer sentence with words"], rng, 120, 160))) <= 160


@pytest.mark.parametrize("draw", [prose.letters, prose.numbers, prose.shouted, prose.few_words, prose.rare_string])
def test_generated_texts_have_only_readable_characters(draw: Callable[[random.Random], str]) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = draw(rng)
        assert set(text.lower()) <= set(" abcdefghijklmnopqrstuvwxyz',.?!~"), text


def test_words_that_begin_alike_or_repeat_are_drawn() -> None:
    alike, rng = prose.Alike(load_words().spoken[:2000]), random.Random(0)
    drawn = [alike.draw(rng) for _ in range(200)]
    assert sum(len(set(text.strip(".!").replace(",", "").split())) == 1 for text in drawn) > 30
