"""Part of a clause's speech that has already been sent, and with which each later attempt begins."""

from collections import Counter
from dataclasses import replace
from itertools import takewhile
from typing import Any

from stretto_client.speech_stream import SpeechEvent

LISTS = ("text", "words", "guidance_changes")  # list fields of an event


class SentSpeech:
    """Part of a clause's speech that has already been sent."""

    def __init__(self) -> None:
        self.num_events = 0
        self._utterance = ""
        self._counts: Counter[str] = Counter()  # samples, codes, and entries of LISTS
        self._skipped: Counter[str] = Counter()  # those that have not been left out of the attempt yet

    @property
    def num_samples(self) -> int:
        return self._counts["pcm"]

    def begin_attempt(self) -> None:
        """Begin a new attempt, whose first events are dropped as far as their speech has been sent."""
        self._skipped = self._counts.copy()

    def rest(self, event: SpeechEvent) -> list[SpeechEvent]:
        """Return the part of an attempt's event that has not been sent, as a list of one event or none."""
        if not self._skipped.total():
            return [event]
        lists: dict[str, Any] = {name: getattr(event, name) for name in LISTS}
        event = replace(event, **{name: entries[self._skip(name, len(entries)) :] for name, entries in lists.items()})
        if event.codes is not None:
            event = replace(event, codes=event.codes[:, self._skip("codes", event.codes.shape[1]) :])
        if event.pcm is not None:
            event = with_samples(event, self._skip("pcm", len(event.pcm)), len(event.pcm))
        has_samples = event.pcm is not None and len(event.pcm) > 0
        has_codes = event.codes is not None and event.codes.size > 0
        is_new = has_samples or has_codes or event.is_final or any(getattr(event, name) for name in LISTS)
        return [event] if is_new else []

    def _skip(self, name: str, size: int) -> int:
        number = min(self._skipped[name], size)
        self._skipped[name] -= number
        return number

    def add(self, event: SpeechEvent) -> SpeechEvent:
        """Return an event with its final number and utterance, and count its speech as sent."""
        self._utterance = self._utterance or event.utterance
        event = replace(event, utterance=self._utterance, index=self.num_events)
        self.num_events += 1
        self._counts.update({name: len(getattr(event, name)) for name in LISTS})
        self._counts["codes"] += 0 if event.codes is None else event.codes.shape[1]
        self._counts["pcm"] += 0 if event.pcm is None else len(event.pcm)
        return event

    def split(self, event: SpeechEvent, latest: float) -> tuple[SpeechEvent | None, SpeechEvent | None]:
        """Return the part of an event before sample `latest` of the clause, and the other part; None for no such part.

        An event without samples is before it if fewer than `latest` samples have been sent. Words are in the part in
        which they end, because another attempt may end a word differently. Changes are in the part in which they begin,
        the text in the first part, and codes in the last.
        """
        if latest <= self.num_samples:
            return None, event
        if event.pcm is None or latest >= self.num_samples + len(event.pcm):
            return event, None
        border = int(latest) - self.num_samples
        first = with_samples(event, 0, border)
        last = with_samples(event, border, len(event.pcm))
        words = tuple(takewhile(lambda word: (word.end_s or word.start_s) < last.start_s, event.words))
        changes = tuple(change for change in event.guidance_changes if change.start_s < last.start_s)
        first = replace(first, words=words, guidance_changes=changes, codes=None, is_final=False, report=None)
        later = event.words[len(words) :], event.guidance_changes[len(changes) :]
        return first, replace(last, text="", words=later[0], guidance_changes=later[1])


def with_samples(event: SpeechEvent, start: int, stop: int) -> SpeechEvent:
    """Return an event with only the samples from `start` to `stop`."""
    assert event.pcm is not None
    if (start, stop) == (0, len(event.pcm)):
        return event
    start_s = event.start_s + start / event.sample_rate
    duration_s = (stop - start) / event.sample_rate
    return replace(event, pcm=event.pcm[start:stop], start_s=start_s, duration_s=duration_s)
