"""Cuts text of any length into pieces that a model speaks one after another, where a speaker would draw breath."""

import re
from collections.abc import Iterable, Iterator

from sentencex import segment

# Where a sentence that is too long by itself is cut, the best places first: behind a mark that is followed by a space,
# behind a closed bracket, at any space.
PLACES = (r"(?<=[;:—…])\s+", r"(?<=[,)\]–])\s+", r"\s+")
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
    """The sentences of `text` that have ended, as another follows, and the rest, of at most `max_chars` characters."""
    *complete, rest = [*segment(language, text)] or [""]
    if len(rest) > max_chars:
        *parts, rest = _cut(rest, max_chars, PLACES)
        complete += parts
    return "".join(complete), rest


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


def _cut(text: str, max_chars: int, places: tuple[str, ...]) -> Iterator[str]:
    """Pieces of a sentence, cut at the first of the `places` that makes them short enough, or within a word."""
    if len(text) <= max_chars:
        yield text
    elif places:
        for part in _packed((part for part in re.split(places[0], text) if part), max_chars):
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
