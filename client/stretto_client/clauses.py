"""Splitting of text of any length into clauses that a model speaks one after another."""

import re
from collections.abc import Iterable, Iterator, Sequence

from sentencex import segment

# Places to cut an overlong sentence, the best first: after clause-ending punctuation and a space, after a comma or
# closing bracket and a space, at any space.
PLACES = (re.compile(r"(?<=[;:—…])\s+"), re.compile(r"(?<=[,)\]–])\s+"), re.compile(r"\s+"))
# Block size for sentence detection, which takes quadratic time if quotes never close. Places to end a block, the best
# first: a paragraph, punctuation that ends a sentence, any space.
MAX_BLOCK_CHARS = 4000
BLOCK_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"[.!?…]\s|[。！？]"), re.compile(r"\s"))


def split(text: str, max_chars: int, language: str = "en") -> list[str]:
    """Return `text` in pieces of at most `max_chars` characters, as long as whole sentences allow.

    Only whitespace is dropped, and punctuation without a word if it does not fit.

    Args:
        text: Text of any length.
        max_chars: Limit of a piece.
        language: ISO 639-1 code; its abbreviations end no sentence.
    """
    sentences = (sentence.strip() for block in _blocks(text) for sentence in segment(language, block))
    short = (piece for sentence in sentences if sentence for piece in _cut(sentence, max_chars, PLACES))
    return list(_packed(short, max_chars))


def first_sentences(text: str, max_chars: int, language: str = "en") -> tuple[str, str]:
    """Return the complete sentences of `text`, and the rest of at most `max_chars` characters.

    A sentence is complete when another one follows. The first pieces of a longer sentence count as complete. Nothing is
    dropped, not even whitespace.
    """
    sentences: list[str] = segment(language, text)
    rest = sentences[-1] if sentences else ""
    while len(rest) > max_chars:
        rest = rest[_first_end(rest, max_chars) :]
    return text[: len(text) - len(rest)], rest


def halve(text: str, language: str = "en") -> list[str]:
    """Return two or three pieces of `text`, of similar length as far as its sentences and clauses allow."""
    return split(text, max(len(text) // 2 + len(text) % 2, 1), language)


def _blocks(text: str) -> Iterator[str]:
    """Yield all of `text`, in blocks of at most MAX_BLOCK_CHARS."""
    start = 0
    while len(text) - start > MAX_BLOCK_CHARS:
        latest = start + MAX_BLOCK_CHARS
        ends = ([found.end() for found in place.finditer(text, start, latest)] for place in BLOCK_ENDS)
        end = next((found[-1] for found in ends if found), latest)
        yield text[start:end]
        start = end
    yield text[start:]


def _first_end(text: str, max_chars: int) -> int:
    """Return the end of the first piece of an overlong sentence, including the space after it."""
    ends = ([found.end() for found in place.finditer(text, 0, max_chars + 1)] for place in PLACES)
    return next((found[-1] for found in ends if found), max_chars)


def _cut(text: str, max_chars: int, places: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """Yield pieces of a sentence, cut at the first of the `places` that makes them short enough, or within a word."""
    if len(text) <= max_chars:
        yield text
    elif places:
        for part in _packed((part for part in places[0].split(text) if part), max_chars):
            yield from _cut(part, max_chars, places[1:])
    else:
        yield from (text[start : start + max_chars] for start in range(0, len(text), max_chars))


def _packed(pieces: Iterable[str], max_chars: int) -> Iterator[str]:
    """Yield the pieces joined by spaces as far as they fit; punctuation alone that does not fit is dropped."""
    held = ""
    for piece in pieces:
        joined = f"{held} {piece}" if held else piece
        if len(joined) <= max_chars:
            held = joined
        elif not held or any(map(str.isalnum, piece)):
            if held:
                yield held
            held = piece
    if held:
        yield held
