"""Matching of spoken words, given as phonemes, with the words of a text, if the model has skipped or joined words."""

import re
from collections.abc import Sequence
from functools import cache

from stretto.families.tiny.family import PHONEMES

# Letters that are spoken as one; a capital letter stands for two.
DIGRAPHS = {
    "sh": "S",
    "ch": "C",
    "th": "T",
    "ph": "f",
    "gh": "",
    "wh": "w",
    "ck": "k",
    "kn": "n",
    "wr": "r",
    "qu": "kw",
}
# Letters that may spell each consonant; any vowel letter may spell any vowel.
LETTERS = {
    "b": "b", "ch": "Cct", "d": "dt", "dh": "T", "f": "f", "g": "gx", "hh": "hw", "jh": "jgd", "k": "kcxC", "l": "l",
    "m": "m", "n": "n", "ng": "n", "p": "p", "r": "r", "s": "scxz", "sh": "SCsct", "t": "tdT", "th": "T", "v": "vf",
    "w": "wuo", "y": "yuie", "z": "zsx", "zh": "sgz",
}  # fmt: skip
VOWELS = "aeiouy"
DIGRAPH = re.compile("|".join(DIGRAPHS))
# weights
CONSONANT = 2
VOWEL = 1
LEAST = 0.3  # least similarity of a spoken word and the word of the text that it is matched with
MAX_DIFFERENCE = 8  # maximum difference between the numbers of words, which limits the time


def similarity(phonemes: Sequence[str], word: str) -> float:
    """Return how well a spoken word fits a word of the text, in [0, 1].

    It is the weight of their longest common subsequence, relative to their mean weight.
    """
    letters = DIGRAPH.sub(lambda match: DIGRAPHS[match.group()], word.replace("'", ""))
    best = [0] * (len(letters) + 1)
    for phoneme in phonemes:
        before = best
        spelled = LETTERS.get(phoneme, VOWELS)
        weight = _weight(phoneme)
        best = [0]
        for index, letter in enumerate(letters):
            best.append(max(before[index + 1], best[index], before[index] + weight * (letter in spelled)))
    total = sum(map(_weight, phonemes)) + sum(VOWEL if letter in VOWELS else CONSONANT for letter in letters)
    return 2 * best[-1] / total if total else 0.0


@cache
def _weight(phoneme: str) -> int:
    assert phoneme in PHONEMES, phoneme
    return CONSONANT if phoneme in LETTERS else VOWEL


def matched(spoken: Sequence[Sequence[str]], words: Sequence[str]) -> list[int | None]:
    """Match spoken words with words of the text: return an index for each, in ascending order, or None.

    The matching has the largest sum of similarities above LEAST.
    """
    difference = len(words) - len(spoken)
    if abs(difference) > MAX_DIFFERENCE:
        return [None] * len(spoken)
    reach = abs(difference) + 1  # spoken word i is one of the words i - reach to i + reach
    width = len(words) + 1
    # for each word: 0 skips the spoken word, 1 the word, 2 matches
    best = [0.0] * width
    choices = list[list[int]]()
    for index, phonemes in enumerate(spoken):
        before = best
        best = [0.0]
        row = [0]
        for number, word in enumerate(words):
            near = abs(number - index) <= reach
            gain = similarity(phonemes, word) - LEAST if near else -1.0
            options = before[number + 1], best[number], before[number] + gain
            row.append(max(range(3), key=options.__getitem__))
            best.append(options[row[-1]])
        choices.append(row)
    matching = list[int | None]()
    number = len(words)
    for row in reversed(choices):
        while number and row[number] == 1:
            number -= 1
        is_match = number > 0 and row[number] == 2
        matching.append(number - 1 if is_match else None)
        number -= is_match
    return matching[::-1]
