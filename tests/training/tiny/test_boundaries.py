"""Assignment of phonemes to words."""

import pytest

from training.tiny.boundaries import word_of_phonemes


@pytest.mark.parametrize(
    ("heard", "alone", "words"),
    [
        ("pau ax b er ch pau", ["ey", "b er ch"], [-1, 0, 1, 1, 1, -1]),
        ("pau dh iy ae p ax l pau", ["dh ax", "ae p ax l"], [-1, 0, 0, 1, 1, 1, 1, -1]),
        ("pau t uw pau t uw pau", ["t uw", "t uw"], [-1, 0, 0, -1, 1, 1, -1]),
        ("pau k ae t s pau", ["k ae t s"], [-1, 0, 0, 0, 0, -1]),
    ],
)
def test_phonemes_are_assigned_to_words(heard: str, alone: list[str], words: list[int]) -> None:
    assert word_of_phonemes(heard.split(), [word.split() for word in alone]) == words


def test_sentence_with_a_missing_word_is_discarded() -> None:
    assert word_of_phonemes(["ey"], [["ey"], ["s", "ih", "t"]]) is None


def test_word_indices_never_decrease() -> None:
    found = word_of_phonemes("dh ax k ae t ih z ih n".split(), [w.split() for w in ("dh ax", "k ae t", "ih z", "ih n")])
    assert found == [0, 0, 1, 1, 1, 2, 2, 3, 3]
