"""Times of the characters of a text, from the times of its words."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

NEAR_CHARS = 200  # number of characters in which a word without a position is searched


class Times(NamedTuple):
    """Characters, with their starts and ends in seconds of the audio file."""

    characters: list[str]
    starts_s: list[float]
    ends_s: list[float]

    def extend(self, times: "Times") -> None:
        """Append the times of further characters."""
        self.characters.extend(times.characters)
        self.starts_s.extend(times.starts_s)
        self.ends_s.extend(times.ends_s)

    def in_seconds(self) -> dict[str, Any] | None:
        """Return the alignment of an HTTP response; None if there are no characters."""
        if not self.characters:
            return None
        return {
            "characters": self.characters,
            "character_start_times_seconds": [round(start_s, 3) for start_s in self.starts_s],
            "character_end_times_seconds": [round(end_s, 3) for end_s in self.ends_s],
        }

    def in_milliseconds(self, since_ms: int) -> dict[str, Any] | None:
        """Return the alignment of a WebSocket's message; None if there are no characters.

        Args:
            since_ms: End of the alignment of the previous message, to which the times are relative.
        """
        if not self.characters:
            return None
        starts_ms = [milliseconds(start_s) for start_s in self.starts_s]
        durations_ms = [milliseconds(end_s) - start_ms for start_ms, end_s in zip(starts_ms, self.ends_s, strict=True)]
        return {
            "chars": self.characters,
            "charStartTimesMs": [start_ms - since_ms for start_ms in starts_ms],
            "charDurationsMs": durations_ms,
        }


def milliseconds(seconds: float) -> int:
    """Return a time in whole milliseconds."""
    return round(1000 * seconds)


class CharacterTimes:
    """Converter of the times of a text's words to the times of its characters, in order.

    The characters of a word share its time evenly. Those between two words share the time between them, so that the
    times have no gaps. A word whose end is unknown lasts until the next one.
    """

    def __init__(self) -> None:
        self._text = ""
        self._num_timed = 0
        self._timed_s = 0.0  # end of the characters that have a time
        self._unended: dict[str, Any] | None = None
        self._has_words = False

    def add(self, piece: str) -> None:
        """Append a piece of the text."""
        self._text += piece

    def until(self, words: Sequence[dict[str, Any]]) -> Times:
        """Return the times of further characters, given the records of further words (`timed_word`)."""
        times = Times([], [], [])
        for word in words:
            self._end_word(times, word["start"])
            self._unended = word
            if "end" in word:
                self._end_word(times, word["end"])
        return times

    def rest(self, end_s: float) -> Times:
        """Return the times of the other characters, which end at `end_s` seconds; none if no word has a time."""
        times = Times([], [], [])
        self._end_word(times, end_s)
        if self._has_words:
            self._share(times, len(self._text), end_s)
        return times

    def _end_word(self, times: Times, end_s: float) -> None:
        word = self._unended
        self._unended = None
        if word is None or (span := self._span(word)) is None:
            return
        self._has_words = True
        start, end = span
        self._share(times, start, word["start"])
        self._share(times, end, end_s)

    def _span(self, word: dict[str, Any]) -> tuple[int, int] | None:
        """Return the start and the end of a word in the text; None if it is not found after the previous word."""
        if "text_start" in word:
            return (word["text_start"], word["text_end"]) if word["text_start"] >= self._num_timed else None
        pattern = re.compile(rf"(?<!\w){re.escape(word['word'])}(?!\w)")
        match = pattern.search(self._text, self._num_timed, self._num_timed + NEAR_CHARS)
        return None if match is None else match.span()

    def _share(self, times: Times, stop: int, end_s: float) -> None:
        """Share the time until `end_s` evenly among the characters before `stop` that have no time yet."""
        characters = self._text[self._num_timed : stop]
        begin_s = self._timed_s
        self._num_timed = max(stop, self._num_timed)
        self._timed_s = max(end_s, begin_s)
        step_s = (self._timed_s - begin_s) / max(1, len(characters))
        times.characters.extend(characters)
        times.starts_s.extend(begin_s + step_s * index for index in range(len(characters)))
        times.ends_s.extend(begin_s + step_s * (index + 1) for index in range(len(characters)))
