"""Tally of one utterance: the progress line while it is spoken, and its statistics afterwards."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from stretto_client.long_speech import Speech
from stretto_client.speech_stream import SpeechEvent

MAX_SHOWN = 60  # maximum number of characters of text in the progress line


class Tally:
    """Statistics of one utterance. Times are wall-clock times since the request, in seconds."""

    def __init__(self, shows_progress: bool = True, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        # a dumb terminal does not understand the escape codes
        self._shows_progress = shows_progress and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._started_s = time.monotonic()
        self._spoken = ""
        self.text = ""
        self.first_audio_s: float | None = None
        self.audio_s = 0.0
        self.total_s = 0.0
        self.report: dict[str, Any] = {}

    def add(self, event: SpeechEvent) -> None:
        """Record an event, and update the progress line on a terminal."""
        self.total_s = time.monotonic() - self._started_s
        self.text += event.text
        self._spoken = " ".join([self._spoken, *(word.word for word in event.words)]).strip()
        if event.pcm is not None and len(event.pcm):
            self.first_audio_s = self.total_s if self.first_audio_s is None else self.first_audio_s
            self.audio_s += len(event.pcm) / event.sample_rate
        self.report = event.report or self.report
        if self._shows_progress:
            self._stream.write(f"\r\033[K{self.audio_s:5.1f} s  {(self._spoken or self.text)[-MAX_SHOWN:]}")
            self._stream.flush()

    def end_line(self) -> None:
        """Clear the progress line."""
        if self._shows_progress:
            self._stream.write("\r\033[K")
            self._stream.flush()

    @property
    def rtf(self) -> float | None:
        """Wall-clock seconds per second of audio; None if there is no audio."""
        return self.total_s / self.audio_s if self.audio_s else None

    def summary(self) -> str:
        """Return a line with duration, time to first audio, real-time factor, seed, guidance and results of checks."""
        drawn = f"seed {self.report['seed']}"
        ended = [] if self.report["finish_reason"] == "stop" else [f"ended by {self.report['finish_reason']}"]
        if self.rtf is None:
            return ", ".join([f"no audio, complete after {self.total_s:.2f} s", drawn, *ended])
        parts = [
            f"{self.audio_s:.2f} s of audio",
            f"first audio after {self.first_audio_s:.2f} s",
            f"real-time factor {self.rtf:.2f}",
            drawn,
            f"guidance {self.report['guidance_scale']:g}",
            *ended,
        ]
        if left_out := self.report.get("left_out"):
            parts.append(f"left out: {', '.join(left_out)}")
        if untimed := self.report.get("untimed_words"):
            parts.append(f"words without a time, which may be missing: {' '.join(untimed)}")
        return ", ".join([*parts, *self._checks()])

    def _checks(self) -> list[str]:
        """Return the results of the checks of the speech, except checks without findings."""
        parts = []
        if faults := self.report.get("faults"):
            places = [f"{fault['fault']} at {fault['start_s']:.1f} s" for fault in faults]
            parts.append(f"faults: {', '.join(places)}")
        if transcripts := self.report.get("transcripts"):
            parts.append(f"heard: {' '.join(transcripts)}")
        if redrawn := self.report.get("redrawn"):
            parts.append(f"redrawn {redrawn}")
        if unchecked := self.report.get("unchecked"):
            parts.append(f"unchecked: {', '.join(unchecked)}")
        return parts

    def record(self) -> dict[str, Any]:
        """Return the statistics for JSON, with the server's report."""
        return {
            "audio_s": self.audio_s,
            "ttfa_s": self.first_audio_s,
            "rtf": self.rtf,
            "total_s": self.total_s,
            "text": self.text,
            "report": self.report,
        }


async def follow(stream: Speech, handle: Callable[[SpeechEvent], None], shows_progress: bool) -> Tally:
    """Pass every event of an utterance to `handle` as it arrives, and return the statistics."""
    tally = Tally(shows_progress)
    async with stream:
        try:
            async for event in stream:
                tally.add(event)
                handle(event)
        finally:
            tally.end_line()
    return tally
