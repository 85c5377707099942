"""Destinations for samples (files and players), the progress line, and the summary."""

import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from stretto_client.long_speech import Speech
from stretto_client.speech_stream import SpeechEvent

MAX_SHOWN = 60  # maximum number of characters of text in the progress line


class Tally:
    """Statistics of one utterance. Times are wall-clock times since the request, in seconds."""

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
        """Return a line with audio duration, time to first audio, real-time factor, seed and guidance."""
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
    """Pass every event of an utterance to `handle` as it arrives, and return the statistics.

    Args:
        stream: Events of the utterance.
        handle: Function that processes an event.
        shows_progress: True to show a progress line on a terminal.
    """
    tally = Tally(shows_progress)
    async with stream:
        try:
            async for event in stream:
                tally.add(event)
                handle(event)
        finally:
            tally.end_line()
    return tally


FORMATS = (".wav", ".flac", ".ogg", ".mp3")
# Players that read 16-bit mono samples from standard input; {rate} is the sample rate.
STREAMING_PLAYERS = {
    "aplay": "aplay -q -t raw -f S16_LE -c 1 -r {rate} -",
    "paplay": "paplay --raw --format=s16le --channels=1 --rate={rate}",
    "ffplay": "ffplay -loglevel quiet -nodisp -autoexit -f s16le -ar {rate} -i -",
}
FILE_PLAYERS = ("afplay",)


class Sink(Protocol):
    """Destination for an utterance's samples."""

    def write(self, pcm: NDArray[Any], sample_rate: int) -> None:
        """Write samples [n], float32 in [-1, 1] or int16."""
        ...

    def close(self) -> None:
        """Complete the file, or wait until the player has played everything."""
        ...


def pcm16(pcm: NDArray[Any]) -> bytes:
    """Return samples (int16, or floating-point in [-1, 1]) as 16-bit little-endian bytes."""
    if pcm.dtype == np.int16:
        return pcm.astype("<i2").tobytes()
    return (np.clip(pcm, -1.0, 1.0) * 32_767).round().astype("<i2").tobytes()


class AudioFile:
    """Audio file that is written as samples arrive.

    The standard library writes wav; soundfile writes flac, ogg and mp3.
    """

    def __init__(self, path: Path):
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"expected a file name that ends in one of {', '.join(FORMATS)}, got {path.name!r}")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}")
        self.path = path
        self._writer: WavWriter | SoundFileWriter | None = None

    def write(self, pcm: NDArray[Any], sample_rate: int) -> None:
        if self._writer is None:
            is_wav = self.path.suffix.lower() == ".wav"
            self._writer = (WavWriter if is_wav else SoundFileWriter)(self.path, sample_rate)
        self._writer.write(pcm)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WavWriter:
    """Writer for 16-bit wav files. Every write updates the header, so the file can be played at any time."""

    def __init__(self, path: Path, sample_rate: int):
        self._file = wave.open(str(path), "wb")  # noqa: SIM115 - closed in `close`
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(sample_rate)

    def write(self, pcm: NDArray[Any]) -> None:
        self._file.writeframes(pcm16(pcm))

    def close(self) -> None:
        self._file.close()


class SoundFileWriter:
    """Writer for soundfile's formats. The file's suffix selects the format."""

    def __init__(self, path: Path, sample_rate: int):
        import soundfile  # not needed for wav files

        self._file = soundfile.SoundFile(path, "w", samplerate=sample_rate, channels=1)

    def write(self, pcm: NDArray[Any]) -> None:
        self._file.write(pcm)

    def close(self) -> None:
        self._file.close()


class StreamingPlayer:
    """Player program that reads samples from standard input. A thread feeds it, so that writes do not block."""

    def __init__(self, command: str):
        self._command = command
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def write(self, pcm: NDArray[Any], sample_rate: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._play, args=(sample_rate,), daemon=True)
            self._thread.start()
        self._queue.put(pcm16(pcm))

    def close(self) -> None:
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _play(self, sample_rate: int) -> None:
        command = self._command.format(rate=sample_rate).split()
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet) as player:
            assert player.stdin is not None
            try:
                while (data := self._queue.get()) is not None:
                    player.stdin.write(data)
                    player.stdin.flush()
            # the player has exited, for example because there is no sound device; continue for the file
            except BrokenPipeError:
                return


class FilePlayer:
    """Player program that needs a complete file; `close` starts it."""

    def __init__(self, command: str):
        self._command = command
        self._folder = tempfile.TemporaryDirectory()
        self._file = AudioFile(Path(self._folder.name) / "speech.wav")

    def write(self, pcm: NDArray[Any], sample_rate: int) -> None:
        self._file.write(pcm, sample_rate)

    def close(self) -> None:
        self._file.close()
        if self._file.path.exists():
            subprocess.run([self._command, self._file.path], check=False)
        self._folder.cleanup()


def find_player() -> Sink | None:
    """Return a sink for the first audio player installed on this machine, or None."""
    for name, command in STREAMING_PLAYERS.items():
        if shutil.which(name):
            return StreamingPlayer(command)
    return next((FilePlayer(name) for name in FILE_PLAYERS if shutil.which(name)), None)
