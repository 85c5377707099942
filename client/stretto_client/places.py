"""Positions of words in the text of a request, after markup was removed and the text was split into clauses."""

import re
from dataclasses import replace

from stretto_client.speech_stream import SpeechEvent, Word
from stretto_client.ssml import MARKS
from stretto_client.tags import REASONING, TAG, VOICE_MARK

RUN = re.compile(r"[^\W_]+")
# Parts of a source that are not spoken (the first tag of a block of reasoning), or a run of letters and digits.
TOKEN = re.compile(
    rf"<(?=[^\s<>/]{{0,64}}(?:{REASONING.pattern.partition('|^')[0]}))(?P<block>[^\s<>]{{1,128}})>"
    rf"|{TAG.pattern}|(?i:{VOICE_MARK.pattern})|\]\([^()]*\)|&\#?\w{{1,32}};|(?P<run>{RUN.pattern})"
)
# Maximum number of source tokens and of characters between two words, not counting blocks of reasoning. They limit the
# time for a word that is not in the source.
MAX_SKIPPED = 20
MAX_SKIPPED_CHARS = 2000


class Places:
    """Finder of the positions of clauses' words in the source text that the user has written so far."""

    def __init__(self, source: str = ""):
        self._source = source
        self._at = 0

    def add(self, piece: str) -> None:
        """Append a piece of the source text."""
        self._source += piece

    def find(self, clause: str) -> "ClausePlaces":
        """Return the positions in the source of the words of the next clause."""
        runs = {run.start(): self._next(run.group()) for run in RUN.finditer(clause)}
        return ClausePlaces(clause, self._source, runs)

    def _next(self, run: str) -> int | None:
        """Return the position of a run of letters and digits, and continue after it; None if the source lacks it."""
        source = self._source
        at = self._at
        stop = self._at + MAX_SKIPPED_CHARS
        for _ in range(MAX_SKIPPED + 1):
            match = TOKEN.search(source, at, stop)
            if match is None:
                return None
            at = match.end()
            if match["run"] == run:
                self._at = at
                return match.start()
            if match["block"]:
                end = source.find(f"</{match['block']}>", at)
                stop += (len(source) if end < 0 else end) - at
                at = len(source) if end < 0 else end
        return None


class ClausePlaces:
    """Positions of the words of one clause.

    Args:
        runs: Position in the source of each run of letters and digits, keyed by its position in the clause.
    """

    def __init__(self, clause: str, source: str, runs: dict[int, int | None]):
        self._clause = clause
        self._source = source
        self._runs = runs

    def moved(self, event: SpeechEvent) -> SpeechEvent:
        """Return an event in which the positions of words refer to the source instead of the clause."""
        return replace(event, words=tuple(map(self._moved, event.words))) if event.words else event

    def _moved(self, word: Word) -> Word:
        word = replace(word, word=word.word.translate(MARKS))
        if word.text_start is None or word.text_end is None:
            return word
        runs = list(RUN.finditer(self._clause, word.text_start, word.text_end))
        first, last = (self._runs.get(run.start()) for run in (runs[0], runs[-1])) if runs else (None, None)
        if first is None or last is None:
            return replace(word, text_start=None, text_end=None)
        start = first - (runs[0].start() - word.text_start)
        end = last + word.text_end - runs[-1].start()
        if self._source[start:end] != self._clause[word.text_start : word.text_end]:  # the word contains markup
            start = first
            end = last + len(runs[-1].group())
        return replace(word, text_start=start, text_end=end)
