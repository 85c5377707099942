"""Mapping from the words that a model speaks to the words of the request's text, for word times."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, pairwise

from stretto.records.prompt import SourceWord

UNIT = re.compile(r"[^\s—…]+")
EDGES = ".,;:!?\"'()[]{}<>«»“”‘’„*_`~|/\\"  # punctuation around a word that does not belong to it
INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # such as "U.S", to which the next full stop belongs
MAX_PAIRS = 1 << 20  # maximum product of both numbers of words in an alignment, which limits its time


def source_words(text: str, spoken: Sequence[str], speak: Callable[[str], Sequence[str]]) -> tuple[SourceWord, ...]:
    """Return the word of a text to which each spoken word belongs; empty if there are too many words to align.

    The words of `text` are separated by spaces. Each is also converted by itself. The results are aligned with the
    spoken words, which may depend on the words around them: `5 May` is spoken as "fifth of may". Words that cannot be
    separated count as one: `$5 million` is spoken as "five million dollars".
    """
    units = list(UNIT.finditer(text))
    alone = [speak(unit.group()) for unit in units]
    flat = [word for words in alone for word in words]
    if not units or (flat != list(spoken) and len(flat) * len(spoken) > MAX_PAIRS):
        return ()
    ends = list(accumulate(map(len, alone)))
    owners = list[int]()
    for index in _aligned(flat, spoken):
        owners.append(min(bisect_right(ends, index), len(units) - 1))
    spans = _spans(units, [bool(words) for words in alone], set(owners))
    return tuple(_trimmed(text, *spans[owner]) for owner in owners)


def _aligned(alone: Sequence[str], spoken: Sequence[str]) -> list[int]:
    """Return the index in `alone` of each spoken word, in ascending order."""
    places = list[int]()
    for _, begin, end, first, last in SequenceMatcher(None, alone, spoken, autojunk=False).get_opcodes():
        if begin == end:  # inserted words belong to the word before them
            places += [max(begin - 1, 0)] * (last - first)
        else:
            places += [begin + index * (end - begin) // (last - first) for index in range(last - first)]
    return places


def _spans(units: list[re.Match[str]], is_word: list[bool], owners: set[int]) -> dict[int, tuple[int, int]]:
    """Return the span of each unit in `owners`, extended by the following words that belong to no unit.

    The first span also contains such words before it.
    """
    spans = dict[int, tuple[int, int]]()
    order = sorted(owners)
    for index, (owner, following) in enumerate(pairwise([*order, len(units)])):
        start = units[owner].start()
        if not index:
            start = next((units[unit].start() for unit in range(owner) if is_word[unit]), start)
        last = max(unit for unit in range(owner, following) if unit == owner or is_word[unit])
        spans[owner] = start, units[last].end()
    return spans


def _trimmed(text: str, start: int, end: int) -> SourceWord:
    """Return the word in a span, without the punctuation around it."""
    span = text[start:end]
    word = span.strip(EDGES)
    if not any(map(str.isalnum, word)):
        word = span  # a sign such as ">=", which has no letters
    start += span.index(word)
    end = start + len(word)
    if INITIALS.fullmatch(word) and text.startswith(".", end):
        end += 1
    return SourceWord(text[start:end], start, end)
