"""Cuts text of any length into pieces that a model speaks one after another, where a speaker would draw breath."""

import re
from collections.abc import Iterable, Iterator, Sequence

from sentencex import segment

# Where a sentence that is too long by itself is cut, the best places first: behind a mark that is followed by a space,
# behind a closed bracket, at any space.
PLACES = (re.compile(r"(?<=[;:—…])\s+"), re.compile(r"(?<=[,)\]–])\s+"), re.compile(r"\s+"))
# In so many characters at once sentences are looked for: of quotes that never close, that takes time by the square. A
# block ends, the best places first, with a paragraph, behind a mark that ends a sentence, at any space.
MAX_BLOCK_CHARS = 4000
BLOCK_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"[.!?…]\s|[。！？]"), re.compile(r"\s"))


def split(text: str, max_chars: int, language: str = "en") -> list[str]:
    """The pieces of `text`, each of at most `max_chars` characters and as long as whole sentences allow.

    Nothing is lost but space, and marks that no word stands with.
    language: whose abbreviations end no sentence (ISO 639-1).
    """
    sentences = (sentence.strip() for block in _blocks(text) for sentence in segment(language, block))
    short = (piece for sentence in sentences if sentence for piece in _cut(sentence, max_chars, PLACES))
    return list(_packed(short, max_chars))


def first_sentences(text: str, max_chars: int, language: str = "en") -> tuple[str, str]:
    """The sentences of `text` that have ended, as another follows, and the rest, of at most `max_chars` characters.

    Of a sentence that is longer than that, its first pieces count among the former. Nothing is lost, not even space.
    """
    sentences: list[str] = segment(language, text)
    rest = sentences[-1] if sentences else ""
    while len(rest) > max_chars:
        rest = rest[_first_end(rest, max_chars) :]
    return text[: len(text) - len(rest)], rest


def halve(text: str, language: str = "en") -> list[str]:
    """Two or three pieces of `text`, as long as each other as far as its sentences and clauses allow."""
    return split(text, max(len(text) // 2 + len(text) % 2, 1), language)


def _blocks(text: str) -> Iterator[str]:
    """All of `text`, in blocks of at most MAX_BLOCK_CHARS."""
    start = 0
    while len(text) - start > MAX_BLOCK_CHARS:
        latest = start + MAX_BLOCK_CHARS
        ends = ([found.end() for found in place.finditer(text, start, latest)] for place in BLOCK_ENDS)
        end = next((found[-1] for found in ends if found), latest)
        yield text[start:end]
        start = end
    yield text[start:]


def _first_end(text: str, max_chars: int) -> int:
    """Where the first piece of a sentence that is too long ends, with the space behind it."""
    ends = ([found.end() for found in place.finditer(text, 0, max_chars + 1)] for place in PLACES)
    return next((found[-1] for found in ends if found), max_chars)


def _cut(text: str, max_chars: int, places: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """Pieces of a sentence, cut at the first of the `places` that makes them short enough, or within a word."""
    if len(text) <= max_chars:
        yield text
    elif places:
        for part in _packed((part for part in places[0].split(text) if part), max_chars):
            yield from _cut(part, max_chars, places[1:])
    else:
        yield from (text[start : start + max_chars] for start in range(0, len(text), max_chars))


def _packed(pieces: Iterable[str], max_chars: int) -> Iterator[str]:
    """The pieces, joined with a space as far as they fit; marks alone, for which there is no room, say nothing."""
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
