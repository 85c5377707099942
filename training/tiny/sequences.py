"""Training sequences: rows as the engine feeds them at run time, with targets and spans for guided attention.

    tts    [tts][voice] c a t [begin_text] pau k ae t pau [end_of_text] [begin_audio] audio rows …
    g2p    as tts, but cut after [end_of_text]
    asr    [asr][begin_audio] audio rows [begin_text] pau k ae t pau [separator] c a t [end_of_reply]
    spell  as asr, but without audio rows

`look` is the spans of earlier rows to which guided attention heads should attend. Only training uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import ceil, floor

import numpy as np

from stretto.families.tiny import family as tiny
from training.tiny.encoded import Transcript

NO_TARGET = -1
SPACE = tiny.FIRST_CHARACTER
CHARACTER_ID = {character: tiny.FIRST_CHARACTER + index for index, character in enumerate(tiny.CHARACTERS)}
INDEX = tiny.POINTER.index_stream
MAX_DELAY = tiny.LAYOUT.max_delay


class Head(IntEnum):
    """Guided attention heads, with the rows to which each one should attend."""

    NEXT_PHONEME = 0  # audio row -> text row of the phoneme after the one being spoken
    THIS_PHONEME = 1  # audio row -> text row of the phoneme being spoken
    SOURCE = 2  # text row -> the letters of the next phoneme, or the phonemes of the next letter
    SOUND = 3  # text row -> the audio rows of the next phoneme


@dataclass(frozen=True)
class Rows:
    """A sequence of R rows, without the codec streams.

    Attributes:
        stream_0: Token ids of stream 0, int16 [R].
        index: Token ids of the index stream, int16 [R].
        target: Stream 0 of the next row, or NO_TARGET, int16 [R].
        look: Span of rows that each Head should attend to, int16 [R, 4, 2]; empty if both ends are equal.
        audio: First audio row.
        frames: Number of codec frames; 0 for a sequence without audio.
        speaks: True if the codec streams are targets.
    """

    stream_0: np.ndarray
    index: np.ndarray
    target: np.ndarray
    look: np.ndarray
    audio: int = 0
    frames: int = 0
    speaks: bool = False


def blank(stream_0: Sequence[int]) -> Rows:
    """Return rows with these ids on stream 0 and with neither targets nor guided attention."""
    rows = len(stream_0)
    return Rows(
        np.asarray(stream_0, dtype=np.int16),
        np.full(rows, tiny.PAD, dtype=np.int16),
        np.full(rows, NO_TARGET, dtype=np.int16),
        np.zeros((rows, 4, 2), dtype=np.int16),
    )


def letter_spans(text: str) -> list[tuple[int, int]]:
    """Return the span [first, last) of each word's letters in the text, excluding punctuation."""
    spans = []
    start = 0
    for piece in text.split(" "):
        stripped = piece.strip(",.?!")
        if stripped:
            first = start + piece.index(stripped)
            spans.append((first, first + len(stripped)))
        start += len(piece) + 1
    return spans


def phoneme_text(transcript: Transcript) -> tuple[list[int], list[int]]:
    """Return the ids of the text segment, and each id's phoneme index in the transcript; -1 for a space."""
    ids: list[int] = []
    source: list[int] = []
    word = 0
    for index, phoneme in enumerate(transcript.phonemes):
        if transcript.words[index] > word:
            word = transcript.words[index]
            ids.append(SPACE)
            source.append(-1)
        ids.append(tiny.FIRST_PHONEME + phoneme)
        source.append(index)
    return ids, source


def _diagonal(position: int, count: int, span: tuple[int, int]) -> tuple[int, int]:
    """Return the part of `span` at the relative position of item `position` of `count`, ± 1.5 items."""
    first, last = span
    centre = first + (position + 0.5) / count * (last - first)
    return max(first, floor(centre - 1.5)), min(last, ceil(centre + 1.5))


def _phoneme_spans(words: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the span [first, last) of each word's phonemes."""
    spans: dict[int, tuple[int, int]] = {}
    for index, word in enumerate(words):
        if word >= 0:
            spans[word] = (spans.get(word, (index, index))[0], index + 1)
    return spans


def letters_of_phonemes(transcript: Transcript, source: Sequence[int]) -> list[tuple[int, int]]:
    """Return the span [first, last) of source characters for each id of the phoneme text. It may be empty.

    The source of a space is the space before the word. The source of a silence is the character after the previous
    word.
    """
    letters = letter_spans(transcript.text)
    spans = _phoneme_spans(transcript.words)
    found = []
    word = -1
    for index in source:
        if index < 0:
            first = letters[word + 1][0]
            found.append((first - 1, first))
        elif transcript.words[index] >= 0:
            word = transcript.words[index]
            first, last = spans[word]
            found.append(_diagonal(index - first, last - first, letters[word]))
        else:
            found.append((letters[word][1], letters[word][1] + 1) if word >= 0 else (0, 1))
    return found


def phonemes_of_letters(transcript: Transcript, source: Sequence[int]) -> list[tuple[int, int]]:
    """Return the span of phoneme-text ids for each character of the text. It may be empty."""
    at = {index: position for position, index in enumerate(source) if index >= 0}
    spans = _phoneme_spans(transcript.words)
    found = [(0, 0)] * len(transcript.text)
    for word, (first, last) in enumerate(letter_spans(transcript.text)):
        opposite = (at[spans[word][0]], at[spans[word][1] - 1] + 1)
        for letter in range(first, last):
            found[letter] = _diagonal(letter - first, last - first, opposite)
        if word:
            found[first - 1] = (opposite[0] - 1, opposite[0])
    return found


def number_phonemes(rows: Rows, first: int, source: Sequence[int]) -> None:
    """Write phoneme numbers, from 1 on, to the index stream of the phoneme text that starts at row `first`."""
    for position, index in enumerate(source):
        if index >= 0:
            rows.index[first + position] = tiny.PHONEME_INDEX_BASE + index + 1


def predict(rows: Rows, first: int, last: int) -> None:
    """Make stream 0 of rows [first, last) the target of the rows before them."""
    rows.target[first - 1 : last - 1] = rows.stream_0[first:last]


def characters(text: str) -> list[int]:
    """Return the token ids of a normalised text."""
    return [CHARACTER_ID[character] for character in text]
