"""Forced alignment of a text with the emissions of a CTC model: path, spans and word times. Pure functions."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from anyascii import anyascii
from numpy.typing import NDArray

SEPARATOR = "|"  # label between words, if the alphabet has one
APOSTROPHES = "\u2019\u02bc\u2018"
# Scripts without spaces between words: a character with its marks is a word.
SPACELESS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
SPACES = r"\s\u3001-\u3003\u3008-\u301f\uff01\uff0c\uff1a\uff1b\uff1f"  # white space, and punctuation of these scripts
UNITS = re.compile(rf"[{SPACELESS}]|[^{SPACES}{SPACELESS}]+")


class CannotAlign(ValueError):
    """Raised if a text does not fit the audio, or contains nothing to align."""


class Span(NamedTuple):
    """Run of one label in a path: frames [start, end), and the label's mean probability in these frames."""

    label: int
    start: int
    end: int
    score: float


class TimedWord(NamedTuple):
    """Word with its start and end in seconds, and a score in [0, 1]: the mean probability of its labels."""

    word: str
    start_s: float
    end_s: float
    score: float


def align(log_p: NDArray[np.float32], targets: Sequence[int], blank: int = 0) -> NDArray[np.int32]:
    """Return the most likely path of labels that yields `targets` when repetitions and blanks are removed, int32 [T].

    The result equals that of `torchaudio.functional.forced_align`, including the choice among equally likely paths.

    Args:
        log_p: Log probabilities of C labels in T frames, float32 [T, C].
        targets: L labels, none of them `blank`.

    Raises:
        CannotAlign: If there are no targets, a target is not a label, or there are too few frames.
    """
    num_frames, num_labels = log_p.shape
    ids = np.asarray(targets, np.int64)
    if not len(ids):
        raise CannotAlign("expected at least one label to align, got none")
    if (ids == blank).any() or ids.min() < 0 or ids.max() >= num_labels:
        raise CannotAlign(f"expected labels in [0, {num_labels - 1}] except {blank}, got {sorted(set(ids.tolist()))}")
    needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
    if num_frames < needed:
        raise CannotAlign(f"expected at least {needed} frames for {len(ids)} labels, got {num_frames}")
    labels = np.full(2 * len(ids) + 1, blank)  # blank states are before, between and after the targets
    labels[1::2] = ids
    may_skip = np.zeros(len(labels), np.bool_)  # a path may skip a blank unless the targets around it are equal
    may_skip[3::2] = ids[1:] != ids[:-1]
    best = np.full(len(labels), -np.inf, np.float32)
    best[:2] = log_p[0, labels[:2]]
    moves = np.zeros((num_frames, len(labels)), np.int8)  # number of states advanced to reach each state
    one = np.full_like(best, -np.inf)
    two = np.full_like(best, -np.inf)
    for frame in range(1, num_frames):
        one[1:] = best[:-1]
        two[2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        skips = (two > one) & (two > best)
        advances = (one > best) & (one > two)
        moves[frame] = 2 * skips + advances
        best = np.where(skips, two, np.where(advances, one, best)) + log_p[frame, labels]
    state = len(labels) - (1 if best[-1] > best[-2] else 2)
    path = np.empty(num_frames, np.int32)
    for frame in reversed(range(num_frames)):
        path[frame] = labels[state]
        state -= moves[frame, state]
    return path


def spans(path: NDArray[np.int32], log_p: NDArray[np.float32], blank: int = 0) -> list[Span]:
    """Return the runs of equal labels in a path, int32 [T], excluding blanks.

    Args:
        log_p: Log probabilities of C labels in T frames, float32 [T, C].
    """
    borders = [0, *(np.flatnonzero(path[1:] != path[:-1]) + 1).tolist(), len(path)]
    chosen = np.exp(log_p[np.arange(len(path)), path])
    return [
        Span(int(path[start]), start, end, float(chosen[start:end].mean()))
        for start, end in pairwise(borders)
        if path[start] != blank
    ]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the index of the first character of each word in a text, and of the character after the word.

    Words are separated by spaces. In Chinese, Japanese and Thai, each character is a word. Units that contain neither
    a letter nor a digit are omitted.
    """
    ranges: list[tuple[int, int]] = []
    for unit in UNITS.finditer(text):
        start, end = unit.span()
        if ranges and unicodedata.category(text[start]).startswith("M"):
            ranges[-1] = ranges[-1][0], end  # a combining mark, which belongs to the previous character
        elif any(map(str.isalnum, unit.group())):
            ranges.append((start, end))
    return ranges


def split_words(text: str) -> list[str]:
    """Split a text into words, as `word_spans` does."""
    return [text[start:end] for start, end in word_spans(text)]


@dataclass(frozen=True)
class Alphabet:
    """Labels of a CTC model.

    Attributes:
        labels: Id of each label; only labels of one character are used.
    """

    labels: dict[str, int]
    blank: int

    @property
    def separator(self) -> int | None:
        """Id of the label between words, or None if the alphabet does not have one."""
        label = self.labels.get(SEPARATOR)
        return None if label == self.blank else label

    def spell(self, word: str) -> list[int]:
        """Return the labels of a word, omitting characters that are not in the alphabet."""
        plain = unicodedata.normalize("NFKC", word)
        for apostrophe in APOSTROPHES:
            plain = plain.replace(apostrophe, "'")
        plain = anyascii(plain)
        plain = plain.upper() if "A" in self.labels and "a" not in self.labels else plain
        plain = plain.lower() if "a" in self.labels and "A" not in self.labels else plain
        ids = (self.labels.get(char) for char in plain if char != SEPARATOR)
        return [label for label in ids if label is not None and label != self.blank]


def times(log_p: NDArray[np.float32], words: Sequence[str], alphabet: Alphabet, duration_s: float) -> list[TimedWord]:
    """Return the start and end times of words in audio; raise CannotAlign if there are none, or they do not fit.

    A word that contains no letter of the alphabet, such as a number in digits, is aligned as a star, a wildcard that
    matches any sound.

    Args:
        log_p: Log probabilities of the model's C labels in T frames, float32 [T, C].
    """
    star = log_p.shape[1]
    log_p = np.concatenate([log_p, np.zeros((len(log_p), 1), np.float32)], axis=1)
    targets: list[int] = []
    sizes: list[int] = []
    for index, word in enumerate(words):
        if index and alphabet.separator is not None:
            targets.append(alphabet.separator)
        spelled = alphabet.spell(word) or [star]
        targets += spelled
        sizes.append(len(spelled))
    label_spans = spans(align(log_p, targets, alphabet.blank), log_p, alphabet.blank)
    second = duration_s / len(log_p)
    at = 0
    timed = list[TimedWord]()
    for index, (word, size) in enumerate(zip(words, sizes, strict=True)):
        at += bool(index and alphabet.separator is not None)
        word_labels = label_spans[at : at + size]
        at += size
        weights = [span.end - span.start for span in word_labels]
        score = sum(span.score * weight for span, weight in zip(word_labels, weights, strict=True)) / sum(weights)
        timed.append(TimedWord(word, word_labels[0].start * second, word_labels[-1].end * second, min(1.0, score)))
    return timed
