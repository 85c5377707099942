"""Destinations for samples: files and players."""

import errno
import fcntl
import os
import queue
import re
import select
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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


STANDARD_OUTPUT = ("-", "/dev/stdout")
INHERITED = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")  # such as the pipe of `>(command)`


class Writer(Protocol):
    """Encoder that writes to an open file."""

    def write(self, pcm: NDArray[Any]) -> None:
        """Write samples [n]; raise OSError on failure."""
        ...

    def close(self) -> None:
        """Complete the file and close it, also after a failure."""
        ...


class AudioFile:
    """Audio file that is written as samples arrive.

    The path may also be a pipe or a device, or `-` for standard output. If it has no suffix, these receive wav.

    Attributes:
        is_standard_output: True if the samples go where standard output goes, so that text must go elsewhere.
    """

    def __init__(self, path: Path):
        inherited = INHERITED.fullmatch(str(path))
        self._inherited = int(inherited[1]) if inherited else None
        if str(path) in STANDARD_OUTPUT:
            self._inherited = 1
        if self._inherited == 1 and (sys.__stdout__ is None or os.isatty(1)):
            state = "closed" if sys.__stdout__ is None else "a terminal"
            raise ValueError(f"--out {path}: standard output is {state}; redirect it to a file or a pipe")
        self.path = path
        self.name = "standard output" if self._inherited == 1 else str(path)
        try:
            status = _status(path if self._inherited is None else self._inherited)
        except OSError as error:
            raise self._named(error) from None
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise ValueError(f"expected a file, got the folder {path}")
        self._is_regular = status is None or stat.S_ISREG(status.st_mode)
        suffix = path.suffix.lower()
        if suffix not in FORMATS and self._is_regular and self._inherited is None:
            raise ValueError(f"expected a file name that ends in one of {', '.join(FORMATS)}, got {path.name!r}")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}")
        self.is_standard_output = _is_standard_output(status)
        self._suffix = suffix if suffix in FORMATS else ".wav"
        self._writer: Writer | None = None

    def write(self, pcm: NDArray[Any], sample_rate: int) -> None:
        try:
            if self._writer is None:
                opened = partial(self._open, sample_rate)
                self._writer = opened() if self._is_regular else PipeWriter(opened)
            self._writer.write(pcm)
        except OSError as error:
            with suppress(OSError):
                self.close()
            raise self._named(error) from None

    def close(self) -> None:
        writer = self._writer
        self._writer = None
        try:
            if writer is not None:
                writer.close()
        except OSError as error:
            raise self._named(error) from None

    def _open(self, sample_rate: int) -> Writer:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(self.path, flags, 0o666) if self._inherited is None else os.dup(self._inherited)
        if self._suffix == ".wav":
            return WavWriter(descriptor, sample_rate)
        return SoundFileWriter(descriptor, sample_rate, self._suffix)

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, self.name)


def _status(file: Path | int) -> os.stat_result | None:
    """Return the status of a file or descriptor; None if there is none."""
    with suppress(FileNotFoundError):
        return os.stat(file)
    return None


def _is_standard_output(status: os.stat_result | None) -> bool:
    """Return True if a file is the standard output, unless it is the null device."""
    if status is None or status.st_rdev == os.stat(os.devnull).st_rdev:
        return False
    with suppress(OSError):  # standard output is closed
        return os.path.samestat(status, os.fstat(1))
    return False


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes; wait as long as a pipe is full."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made the pipe non-blocking
            select.select([], [descriptor], [])


UNKNOWN_SIZE = 0xFFFFFFFF  # size field in a wav file of unknown length


def wav_header(sample_rate: int, num_bytes: int | None = None) -> bytes:
    """Return the 44-byte header of a wav file with mono 16-bit samples; `num_bytes` is None if unknown."""
    data = UNKNOWN_SIZE if num_bytes is None else num_bytes
    riff = min(data + 36, UNKNOWN_SIZE)
    data = min(data, UNKNOWN_SIZE)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + struct.pack("<4sI", b"data", data)


class WavWriter:
    """Writer for 16-bit wav files.

    Every write updates the header, so the file can be played at any time. In a pipe the sizes are unknown.
    """

    def __init__(self, descriptor: int, sample_rate: int):
        self._descriptor = descriptor
        self._rate = sample_rate
        self._num_bytes = 0
        is_appended = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND  # with this flag, `pwrite` appends, too
        has_size = stat.S_ISREG(os.fstat(descriptor).st_mode) and not is_appended
        self._start = os.lseek(descriptor, 0, os.SEEK_CUR) if has_size else None
        write_all(descriptor, wav_header(sample_rate, 0 if has_size else None))

    def write(self, pcm: NDArray[Any]) -> None:
        data = pcm16(pcm)
        write_all(self._descriptor, data)
        self._num_bytes += len(data)
        if self._start is not None:
            os.pwrite(self._descriptor, wav_header(self._rate, self._num_bytes), self._start)

    def close(self) -> None:
        os.close(self._descriptor)


class SoundFileWriter:
    """Writer for flac, ogg and mp3 files, with libsndfile."""

    def __init__(self, descriptor: int, sample_rate: int, suffix: str):
        import soundfile  # not needed for wav files

        self._bytes = EncodedBytes(descriptor)
        self._error = soundfile.LibsndfileError
        name = suffix.removeprefix(".").upper()
        try:
            self._file = soundfile.SoundFile(self._bytes, "w", sample_rate, channels=1, format=name)
        except self._error as error:  # for example, mp3 has no rate of 96 kHz
            os.close(descriptor)
            self._bytes.check()
            raise OSError(errno.EINVAL, error.error_string.removeprefix("Error : ").rstrip(".")) from None

    def write(self, pcm: NDArray[Any]) -> None:
        with suppress(self._error):
            self._file.write(pcm)
        self._bytes.check()

    def close(self) -> None:
        with suppress(self._error):
            self._file.close()
        os.close(self._bytes.descriptor)
        self._bytes.check()


class EncodedBytes:
    """File for libsndfile, which does not report errors of all writes.

    Encoders update the header of a file at the end. In a pipe, where they cannot, these updates are dropped.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self._is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._position = self._size = 0
        self._failure: OSError | None = None

    def check(self) -> None:
        """Raise the first error of a write."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: bytes) -> int:
        try:
            if self._is_regular:
                os.lseek(self.descriptor, self._position, os.SEEK_SET)
                write_all(self.descriptor, data)
            elif self._position == self._size and not (self._size == 0 and _is_placeholder(data)):
                write_all(self.descriptor, data)
        except OSError as error:  # libsndfile calls this method, so it must not raise an error
            self._failure = self._failure or error
            return 0
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, num_bytes: int = -1) -> bytes:
        return b""


def _is_placeholder(data: bytes) -> bool:
    """Return True for the empty first frame of an mp3 file, which is replaced at the end by one with the length."""
    return data[:1] == b"\xff" and not any(data[4:])


class PipeWriter:
    """Thread that opens a pipe or device and writes to it, so that a slow reader does not delay the caller."""

    def __init__(self, open_writer: Callable[[], Writer]):
        self._open = open_writer
        self._error: OSError | None = None
        self._queue: queue.SimpleQueue[NDArray[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audio output", daemon=True)
        self._thread.start()

    def write(self, pcm: NDArray[Any]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(pcm)

    def close(self) -> None:
        """Wait until the reader has received everything, or has left."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with closing(self._open()) as writer:
                while (pcm := self._queue.get()) is not None:
                    writer.write(pcm)
        except OSError as error:
            self._error = error


class StreamingPlayer:
    """Player program that reads samples from standard input. A thread feeds it, so that writes do not block."""

    def __init__(self, command: str):
        self._command = command
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._status = 0

    def write(self, pcm: NDArray[Any], sample_rate: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._play, args=(sample_rate,), daemon=True)
            self._thread.start()
        self._queue.put(pcm16(pcm))

    def close(self) -> None:
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        report_player(self._command, self._status)

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
                pass
        self._status = player.returncode


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
            report_player(self._command, subprocess.run([self._command, self._file.path], check=False).returncode)
        self._folder.cleanup()


def report_player(command: str, status: int) -> None:
    """Print a line if a player has failed, because otherwise a user without a sound device gets nothing."""
    if status != 0:
        about = "--out FILE writes the speech to a file"
        print(f"{command.split()[0]} could not play the speech (status {status}): {about}", file=sys.stderr)


def find_player() -> Sink | None:
    """Return a sink for the first audio player installed on this machine, or None."""
    for name, command in STREAMING_PLAYERS.items():
        if shutil.which(name):
            return StreamingPlayer(command)
    return next((FilePlayer(name) for name in FILE_PLAYERS if shutil.which(name)), None)
