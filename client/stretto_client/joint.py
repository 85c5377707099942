"""Concatenation of successive utterances into one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from stretto_client.event import GuidanceChange, SpeechEvent, Word

FADE_S = 0.005
MAX_SILENCE_S = 1.0  # per event
SUMS = ("num_prompt_rows", "num_text_tokens", "num_frames", "guided_frames", "total_s", "audio_s", "decode_s")


class Joint:
    """Converts the events of successive utterances to those of a single one.

    Samples follow each other without a gap, except for pauses. A step between utterances would be an audible click. So
    the next one starts at the last sample value of the one before and fades to its own within FADE_S seconds.

    Attributes:
        report: Combined report of the utterances that have ended.
    """

    def __init__(self) -> None:
        self._num_events = 0
        self._utterance = ""
        self._before_s = 0.0  # duration of the earlier utterances
        self._audio_s = 0.0  # received duration of the current utterance
        self._last_sample = 0.0
        self._pause_s = 0.0  # pending silence
        self._form: np.ndarray | None = None  # empty array of the samples' type
        self._begins = False  # an utterance has ended, and the next one has no samples yet
        self._wants_space = False  # separates the texts of two utterances
        self.report: dict[str, Any] | None = None

    def pause(self, seconds: float) -> None:
        """Insert silence between the last utterance and the next one."""
        self._pause_s += seconds
        self._before_s += seconds

    def silences(self, event: SpeechEvent) -> Iterator[SpeechEvent]:
        """Yield events of the pending silence before `event`, or at the end if `event` is the last of the whole."""
        if event.pcm is not None and len(event.pcm):
            self._form = event.pcm[:0]
        elif not event.is_final:
            return  # the type of the samples is still unknown
        if self._form is None:
            return
        while num_samples := round(min(self._pause_s, MAX_SILENCE_S) * event.sample_rate):
            length_s = num_samples / event.sample_rate
            bare = replace(event, text="", words=(), guidance_changes=(), codes=None, report=None, is_final=False)
            yield replace(
                bare,
                pcm=self._smooth(replace(bare, pcm=np.zeros(num_samples, self._form.dtype)), is_counted=False),
                utterance=self._utterance or event.utterance,
                index=self._num_events,
                start_s=self._before_s - self._pause_s,
                duration_s=length_s,
            )
            self._num_events += 1
            self._pause_s = max(0.0, self._pause_s - length_s)
            self._begins = True

    def joined(self, event: SpeechEvent, is_last: bool) -> SpeechEvent:
        """Return `event` as part of the whole; `is_last`: no utterance follows the event's own."""
        self._utterance = self._utterance or event.utterance
        joined = replace(
            event,
            pcm=None if event.pcm is None else self._smooth(event),
            utterance=self._utterance,
            index=self._num_events,
            text=self._spaced(event.text),
            words=tuple(Word(word.word, word.start_s + self._before_s) for word in event.words),
            guidance_changes=tuple(
                GuidanceChange(change.start_s + self._before_s, change.is_guided) for change in event.guidance_changes
            ),
            start_s=event.start_s + self._before_s,
            is_final=event.is_final and is_last,
        )
        self._num_events += 1
        return self._ended(joined, is_last) if event.is_final else joined

    def _smooth(self, event: SpeechEvent, is_counted: bool = True) -> np.ndarray:
        """Return the samples of `event` without a step from the last ones; `is_counted` is False for silence."""
        assert event.pcm is not None
        pcm = event.pcm
        if not len(pcm):
            return pcm
        if self._begins:
            self._begins = False
            pcm = from_value(pcm, self._last_sample, round(FADE_S * event.sample_rate))
        self._last_sample = float(pcm[-1])
        if is_counted:
            self._audio_s += len(pcm) / event.sample_rate
        return pcm

    def _spaced(self, text: str) -> str:
        if text and self._wants_space:
            self._wants_space = False
            return f" {text}"
        return text

    def _ended(self, event: SpeechEvent, is_last: bool) -> SpeechEvent:
        """Return the last event of an utterance, with the combined report if it is the last of the whole."""
        if event.report is not None:
            self.report = event.report if self.report is None else add_reports(self.report, event.report)
        self._before_s += self._audio_s
        self._audio_s = 0.0
        self._begins = self._wants_space = True
        return replace(event, report=self.report if is_last else None)


def from_value(pcm: np.ndarray, value: float, num_samples: int) -> np.ndarray:
    """Return samples [n] that start at `value` and fade to `pcm` within `num_samples`."""
    fade = np.cos(np.linspace(0, np.pi / 2, num_samples, endpoint=False)[: len(pcm)]) ** 2
    begin = pcm[: len(fade)] + (value - float(pcm[0])) * fade
    if np.issubdtype(pcm.dtype, np.integer):
        limits = np.iinfo(pcm.dtype)
        begin = begin.round().clip(limits.min, limits.max)
    return np.concatenate([begin.astype(pcm.dtype), pcm[len(fade) :]])


def add_reports(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the combined report of two successive utterances: counts are added, other values are the first one's.

    `finish_reason` is that of the first utterance that was cut off. `first_sound_s` is that of the first audible one.
    """
    added = {key: first[key] + second[key] for key in SUMS if key in first and key in second}
    reasons = {"finish_reason": second["finish_reason"]} if first.get("finish_reason") == "stop" else {}
    sound: dict[str, Any] = {}
    if first.get("first_sound_s") is None and second.get("first_sound_s") is not None:
        sound = {"first_sound_s": first.get("audio_s", 0.0) + second["first_sound_s"]}
    frames = first.get("num_frames", 0)
    changes = [(frame + frames, guided) for frame, guided in second.get("guidance_changes", [])]
    moved = {"guidance_changes": [*first.get("guidance_changes", []), *changes]} if changes else {}
    return first | added | reasons | sound | moved
