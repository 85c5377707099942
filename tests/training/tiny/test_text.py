"""Domain sentences."""

import random

import pytest

from stretto.families.tiny.family import CHARACTERS
from training.tiny.text import SLOTS, domain_sentence, domain_vocabulary, fill, number_words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "zero"), (13, "thirteen"), (42, "forty two"), (342, "three hundred and forty two"), (90, "ninety"),
     (5000, "five thousand"), (7012, "seven thousand and twelve"),
     (31_415, "thirty one thousand four hundred and fifteen")],
)  # fmt: skip
def test_numbers_are_spelled_out_as_spoken(value: int, words: str) -> None:
    assert number_words(value) == words


def test_sentences_use_only_known_words_and_characters() -> None:
    rng, words = random.Random(0), set(domain_vocabulary())
    for _ in range(2000):
        sentence = domain_sentence(rng)
        assert set(sentence) <= set(CHARACTERS)
        assert {word.strip(",.?") for word in sentence.split()} <= words


def test_nested_template_slots_are_filled() -> None:
    rng = random.Random(1)
    assert all("{" not in fill("{time} {when} {digits} {year}", rng) for _ in range(500))
    assert all("{" not in fill(choice, rng) for choices in SLOTS.values() for choice in choices)
