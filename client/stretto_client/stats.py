"""What a listener got, and when: the progress line while an utterance runs and the summary after it."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from stretto_client.event import SpeechEvent
from stretto_client.long_speech import Speech

MAX_SHOWN = 60  # characters of text on the progress line


class Tally:
    """Follows one utterance from the moment it is asked for. Seconds are wall time since then."""

    def __init__(self, shows_progress: bool = True, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._shows_progress = shows_progress and self._stream.isatty()
        self._started_s = time.monotonic()
        self._spoken = ""
        self.text = ""
        self.first_audio_s: float | None = None
        self.audio_s = 0.0
        self.total_s = 0.0
        self.report: dict[str, Any] = {}

    def add(self, event: SpeechEvent) -> None:
        """Count an event, and show it where someone watches."""
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
        """Wipe the progress line."""
        if self._shows_progress:
            self._stream.write("\r\033[K")
            self._stream.flush()

    @property
    def rtf(self) -> float | None:
        """Wall seconds per second of audio, or None without audio."""
        return self.total_s / self.audio_s if self.audio_s else None

    def summary(self) -> str:
        """One line: seconds of audio, time to the first of it, real-time factor, seed, guidance."""
        drawn = f"seed {self.report['seed']}"
        if self.rtf is None:
            return f"no audio, complete after {self.total_s:.2f} s, {drawn}"
        parts = [
            f"{self.audio_s:.2f} s of audio",
            f"first audio after {self.first_audio_s:.2f} s",
            f"real-time factor {self.rtf:.2f}",
            drawn,
            f"guidance {self.report['guidance_scale']:g}",
        ]
        if self.report["finish_reason"] != "stop":
            parts.append(f"ended by {self.report['finish_reason']}")
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """The same as plain data, with the server's report."""
        return {
            "audio_s": self.audio_s,
            "ttfa_s": self.first_audio_s,
            "rtf": self.rtf,
            "total_s": self.total_s,
            "text": self.text,
            "report": self.report,
        }


async def follow(stream: Speech, handle: Callable[[SpeechEvent], None], shows_progress: bool) -> Tally:
    """Hand every event on as it arrives, over a progress line if wanted."""
    tally = Tally(shows_progress)
    async with stream:
        try:
            async for event in stream:
                tally.add(event)
                handle(event)
        finally:
            tally.end_line()
    return tally
