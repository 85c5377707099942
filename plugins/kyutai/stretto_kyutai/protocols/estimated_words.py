"""Words with estimated times, for models without word times."""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from stretto_client import SpeechEvent, Word
from stretto_contract.sentence_ends import WIDE

# A complete word: text before a space, or a run of characters of a script without spaces.
WORD = re.compile(rf"[{WIDE}]+|(?<![^\s{WIDE}])[^\s{WIDE}]++(?=[\s{WIDE}])")


def estimated_words(words: list[str], duration_s: float, start_s: float = 0.0) -> Iterator[Word]:
    """Yield words that last `duration_s` together, with times estimated from their lengths."""
    ends = np.cumsum([len(word) for word in words])
    times = (start_s + np.concatenate([[0], ends]) / max(1, ends[-1] if words else 0) * duration_s).tolist()
    for word, (begin_s, end_s) in zip(words, pairwise(times), strict=True):
        yield Word(word, begin_s, end_s)


class TranscriptWords:
    """Words of a transcript whose events have text without word times."""

    def __init__(self, start_s: float):
        self._start_s = start_s
        self._end_s = start_s  # of the audio whose words have been returned
        self._text = ""  # of the words that have not been returned

    def push(self, event: SpeechEvent) -> tuple[Word, ...]:
        """Return the words that an event completes. They share the time since the previous words."""
        self._text += event.text
        if event.transcribed_s is None:
            return ()
        if event.is_final:
            self._text += " "
        words = WORD.findall(self._text)
        self._text = WORD.sub("", self._text).strip()
        begin_s = self._end_s
        self._end_s = self._start_s + event.transcribed_s
        return tuple(estimated_words(words, self._end_s - begin_s, begin_s))
