"""The audio reader process gives the same results as reading in place, and is replaced if it dies."""

import errno
import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
import soundfile

from stretto.errors import Cancelled, InvalidRequest
from stretto.preprocessing.audio import Recording, read_recording
from stretto.preprocessing.audio_worker import MAX_MEMORY_BYTES, AudioProcess, AudioProcessEnded, answer, max_cpu_s
from tests.patience import PATIENCE_S, until
from tests.preprocessing.test_audio import FFMPEG, written

pytestmark = pytest.mark.slow

MAX_S, RATE = 9.6, 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (30_000, 2)).astype(np.float32)


def encoded(container: str) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, NOISE, 44_100, format=container)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def process() -> Iterator[AudioProcess]:
    opened = AudioProcess()
    yield opened
    opened.close()


RECORDINGS = {container: Recording("audio", encoded(container)) for container in ("WAV", "FLAC", "OGG", "MP3")}
RECORDINGS |= {
    name: Recording("audio", written(NOISE[:, :1], 48_000, *form[:2], pipe=form[2])) for name, form in FFMPEG.items()
}
RECORDINGS |= {
    "AIFF": Recording("audio", encoded("AIFF")),
    "CAF": Recording("audio", encoded("CAF")),
    "OGG FLAC": Recording("audio", written(NOISE[:, :1], 48_000, "ogg", "flac")),
    "WAV without sizes": Recording("audio", encoded("WAV").replace(struct.pack("<I", 4 * len(NOISE)), bytes(4))),
    "junk": Recording("audio", bytes(700) + encoded("MP3")),
    "inverted": Recording("audio", written(NOISE[:, :1] * [[1, -1]], 48_000, "ipod", "alac")),
}
RECORDINGS["memory"] = Recording("audio", memoryview(encoded("WAV")))
RECORDINGS["samples"] = Recording("pcm_in", NOISE[:, 0].copy(), is_file=False, sample_rate=22_050)


def test_audio_process_reads_the_same_as_in_process_reading(process: AudioProcess) -> None:
    for recording in RECORDINGS.values():
        expected = read_recording(recording, MAX_S, RATE)
        np.testing.assert_array_equal(process.read(recording, MAX_S, RATE), expected)


def test_audio_process_raises_the_same_errors_as_in_process_reading(process: AudioProcess) -> None:
    bad = [
        Recording("audio[3]", b"no audio"),
        Recording("audio", b""),
        Recording("audio", bytes(20_000_001)),
        Recording("pcm_in", np.full(100, np.nan, np.float32), is_file=False, sample_rate=8_000),
        Recording("pcm_in", NOISE[:, 0].copy(), is_file=False),
        Recording("pcm_in", NOISE[:, 0].copy(), is_file=False, sample_rate=1),
        Recording("audio", encoded("FLAC")[:9_000]),
    ]
    for recording in bad:
        with pytest.raises(InvalidRequest) as here:
            read_recording(recording, MAX_S, RATE)
        with pytest.raises(InvalidRequest) as there:
            process.read(recording, MAX_S, RATE)
        assert str(there.value) == str(here.value)
    with pytest.raises(InvalidRequest, match=r"at most 0\.1 s"):
        process.read(RECORDINGS["FLAC"], 0.1, RATE)


def test_oversized_declared_audio_tables_respect_the_memory_limit(process: AudioProcess) -> None:
    held = BytesIO()
    with av.open(held, "w", format="ipod") as container:
        stream: Any = container.add_stream("alac", rate=44_100, layout="stereo")
        pcm = (NOISE * 32_767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data, num = bytearray(held.getvalue()), 85_000_000  # 24 bytes each once decoded
    sizes, chunks = data.index(b"stsz"), data.index(b"stsc")
    data[sizes + 8 : sizes + 16] = struct.pack(">II", 1, num)
    for entry in range(struct.unpack(">I", data[chunks + 8 : chunks + 12])[0]):
        at = chunks + 12 + 12 * entry
        data[at + 4 : at + 8] = struct.pack(">I", num)
    with pytest.raises((InvalidRequest, AudioProcessEnded)):
        process.read(Recording("audio", bytes(data)), MAX_S, RATE)
    with suppress(AudioProcessEnded):
        assert process.tag(bytes(data), "title") is None
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert str(MAX_MEMORY_BYTES) in limits
    assert len(process.read(RECORDINGS["WAV"], MAX_S, RATE))


def test_partial_writes_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, pwrite = os.memfd_create("test"), os.pwrite
    os.pwrite(memory, written(NOISE[:, :1], 16_000, "wav", "pcm_s16le"), 0)
    monkeypatch.setattr("os.pwrite", lambda file, data, at: pwrite(file, data[:1000], at))
    job = {"field": "audio", "is_file": True, "max_s": MAX_S, "rate": RATE}
    assert answer(memory, job) == {"samples": len(NOISE)}
    assert os.fstat(memory).st_size == 4 * len(NOISE)
    os.close(memory)


def test_full_memory_fails_only_that_recording(process: AudioProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = process.pid
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            process.read(RECORDINGS["WAV"], MAX_S, RATE)
        assert process.num_bytes == 0
        memory = os.memfd_create("test")
        os.write(memory, encoded("WAV"))
        job = {"field": "audio", "is_file": True, "max_s": MAX_S, "rate": RATE}
        assert answer(memory, job) == {"failed": "OSError: [Errno 28] No space left on device"}
        os.close(memory)
    assert len(process.read(RECORDINGS["WAV"], MAX_S, RATE))
    assert process.pid == pid


def test_a_cancelled_job_ends_its_process(process: AudioProcess) -> None:
    victim = process.pid
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(Cancelled):
        process.read(RECORDINGS["WAV"], MAX_S, RATE, lambda: True)
    assert process.pid != victim
    assert len(process.read(RECORDINGS["WAV"], MAX_S, RATE))


def test_a_job_that_exceeds_its_time_is_refused(process: AudioProcess) -> None:
    victim = process.pid
    for signal_number in (signal.SIGSTOP, signal.SIGXCPU):  # the second one is the kernel's at the limit
        os.kill(victim, signal_number)

    def go_on() -> bool:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        return False

    with pytest.raises(InvalidRequest, match="decoded within 10 s of CPU time"):
        process.read(RECORDINGS["FLAC"], MAX_S, RATE, go_on)
    assert len(process.read(RECORDINGS["WAV"], MAX_S, RATE))


def test_each_kind_of_job_has_a_time_limit() -> None:
    assert max_cpu_s({"image": "image"}) == max_cpu_s({"tag": "title"}) == 10
    assert max_cpu_s({"field": "audio", "max_s": 3600.0}) == 82


def test_dead_audio_process_is_restarted(process: AudioProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert len(process.read(RECORDINGS["WAV"], MAX_S, RATE))


def test_audio_process_death_fails_only_the_current_recording(process: AudioProcess) -> None:
    errors: list[Exception] = []

    def read() -> None:
        try:
            process.read(RECORDINGS["WAV"], MAX_S, RATE)
        except AudioProcessEnded as error:
            errors.append(error)

    os.kill(process.pid, signal.SIGSTOP)
    victim, reading = process.pid, threading.Thread(target=read)
    reading.start()
    until(lambda: process.num_bytes > 0)
    os.kill(victim, signal.SIGKILL)
    reading.join(PATIENCE_S)
    assert "ended while reading" in str(errors[0])
    assert process.pid != victim
    assert len(process.read(RECORDINGS["WAV"], MAX_S, RATE))


def test_idle_audio_process_holds_no_audio(process: AudioProcess) -> None:
    process.read(RECORDINGS["WAV"], MAX_S, RATE)
    assert process.num_bytes == 0
    with pytest.raises(InvalidRequest):
        process.read(Recording("audio", b"no audio"), MAX_S, RATE)
    assert process.num_bytes == 0


def test_closing_ends_the_process() -> None:
    process = AudioProcess()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
