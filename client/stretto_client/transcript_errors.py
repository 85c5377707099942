"""Comparison of a text with a transcript of its speech, which finds runs of letters that are missing, added or wrong.

Only letters are compared, without spaces, case and accents, because words may be spelled in several ways. Digits,
symbols, acronyms and abbreviations match any letters or none, because they may be read in several ways. So do markup
and tags such as `[laugh]`.
"""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stretto_contract.normal_forms import normalized
from stretto_contract.pronunciation import is_marked

# Sizes of errors; one of FAULT and above is a fault: four letters that are missing or added, or six wrong ones.
FAULT = 12
MISSED = 3
WRONG = 2
RIGHT = -3
MAX_LETTERS = 2000  # of a spelling
# Markup and tags, which some models read aloud. Symbols replace them, which match as many letters or fewer.
TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|^[ \t]*speaker \d+[ \t]*:", re.IGNORECASE | re.MULTILINE)
SYMBOL = "\N{CURRENCY SIGN}"
EDGES = ".,;:!?…\"'“”‘’()[]{}«»*_~-–—。、，！？；："
SILENT = "'’-–—,;:"  # in a word
LONGEST_ABBREVIATION = 4  # in letters, before a full stop that is not the last
ANY = "?"  # placeholder for any letter or none
ANY_OF_LETTER = 4 * ANY  # for a letter that is spelled, and for punctuation in a word
ANY_OF_SYMBOL = 8 * ANY


def spelling(text: str) -> str:
    """Return the letters of a text, in form NFKD and without marks; ANY replaces digits, acronyms and the like."""
    words = TAG.sub(lambda tag: f" {SYMBOL * (1 + len(tag[0]) // len(ANY_OF_SYMBOL))} ", text).split()
    has_small = any(map(str.islower, text))
    return "".join(_spelled(word, has_small, number == len(words)) for number, word in enumerate(words, 1))


def is_comparable(letters: str) -> bool:
    """Return True if a spelling has at least one letter, and at least as many letters as symbols."""
    num_any = letters.count(ANY)
    return len(letters) > num_any and len(letters) - num_any >= num_any / len(ANY_OF_SYMBOL)


def error_size(text: str, transcript: str) -> int:
    """Return the size of the largest error in a transcript, at least 0.

    The spellings of both are aligned with as few missing, added and wrong letters as possible. The error is the run of
    letters with the largest sum of sizes.
    """
    largest = 0
    current = 0
    for size in _sizes(text, transcript):
        current = max(0, current + size)
        largest = max(largest, current)
    return largest


def _spelled(word: str, has_small: bool, is_last: bool) -> str:
    core = word.strip(EDGES)
    if any(map(is_marked, core)):  # SSML gives its phonemes
        return len(core) * ANY_OF_LETTER
    between_stops = core.split(".")
    is_acronym = len(core) > 1 and ((core.isupper() and has_small) or max(map(len, between_stops)) == 1)
    is_abbreviation = word.endswith(".") and len(core) <= LONGEST_ABBREVIATION and not is_last
    any_of_letter = ANY_OF_LETTER if is_acronym or is_abbreviation else ""
    return "".join(_read(character, any_of_letter) for character in normalized("NFKD", core).casefold())


def _read(character: str, any_of_letter: str) -> str:
    match unicodedata.category(character)[0]:
        case "L":
            return any_of_letter or character
        case "N" | "S":
            return ANY_OF_SYMBOL
        case "P" if character not in SILENT:
            return ANY_OF_LETTER
    return ""


def _sizes(text: str, transcript: str) -> Iterator[int]:
    """Yield the sizes of errors along the alignment, from its end; runs of missing or added letters stay together."""
    text_letters = np.array([*text], "<U1")
    transcript_letters = np.array([*transcript], "<U1")
    removed = (text_letters != ANY).astype(np.int16)
    added = (transcript_letters != ANY).astype(np.int16)
    differs = text_letters[:, None] != transcript_letters
    differs &= removed[:, None].astype(bool) & added.astype(bool)
    costs = _least_costs(removed, added, differs)
    row = len(text)
    column = len(transcript)
    last = ""
    while row or column:
        cost = costs[row, column]
        steps = ""
        if row and column and cost == costs[row - 1, column - 1] + differs[row - 1, column - 1]:
            steps += "p"
        if row and cost == costs[row - 1, column] + removed[row - 1]:
            steps += "r"
        if column and cost == costs[row, column - 1] + added[column - 1]:
            steps += "a"
        last = last if last and last in steps else steps[0]
        row -= last != "a"
        column -= last != "r"
        if last == "p":
            yield WRONG if differs[row, column] else RIGHT
        else:
            yield MISSED * int(removed[row] if last == "r" else added[column])


def _least_costs(removed: NDArray[np.int16], added: NDArray[np.int16], differs: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Return the least costs [N + 1, M + 1] of aligning the first letters of the text with those of the transcript.

    `removed` [N] is the cost of leaving out a letter of the text, and `added` [M] that of a letter that the text lacks.
    `differs` [N, M] is True for letters that differ.
    """
    costs = np.zeros((len(removed) + 1, len(added) + 1), np.int16)
    costs[0, 1:] = np.cumsum(added)
    for row, cost in enumerate(removed):
        least = costs[row] + cost
        least[1:] = np.minimum(least[1:], costs[row, :-1] + differs[row])
        costs[row + 1] = np.minimum.accumulate(least - costs[0]) + costs[0]
    return costs
