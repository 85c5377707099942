"""Joining of successive utterances: their events and reports become those of one utterance."""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client.checked_speech import Judge
from stretto_client.markup import MarkupReader, ssml_reader
from stretto_client.speech_stream import GuidanceChange, SpeechEvent
from stretto_client.ssml import MARKS, RateChange
from stretto_contract.scripts import Transliteration

FADE_S = 0.005
MAX_SILENCE_S = 1.0  # longest silence in one event
SUMS = (
    *("num_prompt_rows", "num_text_tokens", "num_frames", "guided_frames", "total_s", "audio_s", "decode_s"),
    *("redrawn", "redrawn_s"),
)
# Lists in a report; an absent list is empty.
LISTS = ("untimed_words", "faults", "unchecked", "transcripts", "redraw_from")


class Joint:
    """Converter that turns the events of successive utterances into the events of a single utterance.

    Samples follow one another without a gap, except for pauses. A step between utterances would be an audible click.
    Therefore, each utterance starts at the last sample value of the previous one, and fades to its own samples within
    FADE_S seconds.

    Args:
        reader: Reader of the text's markup; None if events are only joined.
        transliteration: Words of other scripts; None if the model reads other scripts, too.
        judge: Judge that may complete the utterances' reports late.
    """

    def __init__(
        self,
        reader: MarkupReader | None = None,
        transliteration: Transliteration | None = None,
        judge: Judge | None = None,
    ) -> None:
        self._reader = reader
        self._transliteration = transliteration
        self._judge = judge
        self._num_events = 0
        self._utterance = ""
        self._before_s = 0.0  # duration of the earlier utterances
        self._audio_s = 0.0  # received duration of the current utterance
        self._last_sample = 0.0
        self._pause_s = 0.0  # pending silence
        self._form: NDArray[Any] | None = None  # empty array with the samples' dtype
        self._begins = False  # True after the end of an utterance, until the next one has samples
        self._wants_space = False  # separates the texts of two utterances
        self._reports = list[tuple[dict[str, Any], float]]()  # of the utterances, and where these begin in seconds
        self.rate = 1.0

    def add(self, change: float | RateChange) -> None:
        """Insert silence (a number of seconds) before the next utterance, or change its rate."""
        if isinstance(change, RateChange):
            self.rate = change.value
        else:
            self._pause_s += change
            self._before_s += change

    def silences(self, event: SpeechEvent) -> Iterator[SpeechEvent]:
        """Yield the pending silence as events to send before `event`, which may be the final event."""
        if event.pcm is not None and len(event.pcm):
            self._form = event.pcm[:0]
        elif not event.is_final:
            return  # the dtype of the samples is still unknown
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
        """Return `event` as an event of the joined utterance; `is_last` marks the events of the last utterance."""
        self._utterance = self._utterance or event.utterance
        joined = replace(
            event,
            pcm=None if event.pcm is None else self._smooth(event),
            utterance=self._utterance,
            index=self._num_events,
            text=self._spaced(event.text),
            words=tuple(word.shifted(self._before_s) for word in event.words),
            guidance_changes=tuple(
                GuidanceChange(change.start_s + self._before_s, change.is_guided) for change in event.guidance_changes
            ),
            start_s=event.start_s + self._before_s,
            is_final=event.is_final and is_last,
            speed=self.rate,
        )
        self._num_events += 1
        return self._ended(joined, is_last) if event.is_final else joined

    def _smooth(self, event: SpeechEvent, is_counted: bool = True) -> NDArray[Any]:
        """Return the samples of `event`, smoothed to follow the previous ones; `is_counted` is False for silence."""
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
        """Return the last event of an utterance. That of the last utterance gets the combined report."""
        if event.report is not None:
            self._reports.append((event.report, self._before_s))
        self._before_s += self._audio_s
        self._audio_s = 0.0
        self._begins = self._wants_space = True
        return replace(event, report=self.report() if is_last else None)

    async def finish(self) -> None:
        """Wait until the reports are complete, before the last event."""
        if self._judge is not None:
            await self._judge.finish()

    def report(self) -> dict[str, Any] | None:
        """Return the combined report; None if no utterance has one."""
        if not self._reports:
            return None
        report = with_left_out(reduce(add_reports, starmap(with_later_faults, self._reports)), self._reader)
        if self._transliteration is not None and self._transliteration.words:
            report = report | {"transliterated": self._transliteration.words}
        return report


def from_value(pcm: NDArray[Any], value: float, num_samples: int) -> NDArray[Any]:
    """Return samples [n] that start at `value` and fade to `pcm` [n] within `num_samples` samples."""
    fade = np.cos(np.linspace(0, np.pi / 2, num_samples, endpoint=False)[: len(pcm)]) ** 2
    begin = pcm[: len(fade)] + (value - float(pcm[0])) * fade
    if np.issubdtype(pcm.dtype, np.integer):
        limits = np.iinfo(pcm.dtype)
        begin = begin.round().clip(limits.min, limits.max)
    return np.concatenate([begin.astype(pcm.dtype), pcm[len(fade) :]])


def with_left_out(report: dict[str, Any], reader: MarkupReader | None) -> dict[str, Any]:
    """Return a report with the tags and elements that a reader of markup has left out, if any, as `left_out`."""
    ssml = ssml_reader(reader)
    left_out = [*([] if reader is None else reader.left_out), *([] if ssml is None else ssml.without_effect)]
    if "untimed_words" in report:
        report = report | {"untimed_words": [word.translate(MARKS) for word in report["untimed_words"]]}
    return report | {"left_out": left_out} if left_out else report


def with_later_faults(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return a report whose faults begin later by a number of seconds."""
    if not report.get("faults"):
        return report
    return report | {"faults": [fault | {"start_s": fault["start_s"] + seconds} for fault in report["faults"]]}


def add_reports(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Combine the reports of two successive utterances.

    Counts and lists of words are added. `finish_reason` comes from the first utterance that was cut off, and
    `first_sound_s` from the first audible one. `aligned` is true if it is true for both. All other values come from the
    first utterance.
    """
    before_s = first.get("audio_s", 0.0)
    added = {key: first[key] + second[key] for key in SUMS if key in first and key in second}
    lists = {key: [*first.get(key, []), *second.get(key, [])] for key in LISTS if key in first or key in second}
    reasons = {"finish_reason": second["finish_reason"]} if first.get("finish_reason") == "stop" else {}
    sound: dict[str, Any] = {}
    if first.get("first_sound_s") is None and second.get("first_sound_s") is not None:
        sound = {"first_sound_s": before_s + second["first_sound_s"]}
    frames = first.get("num_frames", 0)
    changes = [(frame + frames, guided) for frame, guided in second.get("guidance_changes", [])]
    moved = {"guidance_changes": [*first.get("guidance_changes", []), *changes]} if changes else {}
    both = [report["aligned"] for report in (first, second) if "aligned" in report]
    aligned = {"aligned": all(both)} if both else {}
    return first | added | lists | reasons | sound | moved | aligned
