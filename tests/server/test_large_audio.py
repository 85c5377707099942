"""Large files do not delay small requests, and their reader processes may hang or die."""

import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stretto.launcher.processes import descendants, read_process
from stretto.preprocessing.audio import LONG_NICENESS, SHORT_BYTES
from stretto.preprocessing.file_size import MAX_FILE_BYTES
from tests.server.conftest import Server

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day tests/preprocessing

SPEAK, LISTEN = {"seed": 1, "max_audio_s": 0.8}, {"seed": 1, "text": {"max_rows": 10}}


def noise(seconds: float, rate: int, channels: int) -> bytes:
    held = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels)).astype(np.float32)
    soundfile.write(held, samples, rate, format="WAV", subtype="PCM_24")
    return held.getvalue()


LARGE, LONG, SHORT = noise(9.0, 88_200, 8), noise(1.0, 176_400, 2), noise(1.0, 16_000, 1)
assert MAX_FILE_BYTES > len(LARGE) > 19_000_000
assert len(LONG) > SHORT_BYTES > len(SHORT)


def reader(server: Server) -> int:
    """Return the pid of the process that reads long recordings."""
    ends = f"audio_worker {LONG_NICENESS}"
    found = [each.pid for each in descendants(server.pid) if ends in " ".join(each.command.split()[-3::2])]
    assert len(found) == 1, descendants(server.pid)
    return found[0]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # the test has killed it
            os.kill(pid, signal.SIGCONT)


def test_large_files_and_other_requests_are_answered_concurrently(server: Server) -> None:
    pid = server.pid
    with ThreadPoolExecutor(6) as pool:
        large = [pool.submit(server.ask, LISTEN, audio=LARGE) for _ in range(4)]
        small = [pool.submit(server.ask, SPEAK, text="two green windows") for _ in range(2)]
        answers = [each.result() for each in (*large, *small)]
    assert [answer.error for answer in answers] == [None] * 6
    assert [len(answer.pcm) > 0 for answer in answers] == [False] * 4 + [True] * 2
    assert (server.pid, server.state()) == (pid, "ready")


def test_long_recordings_do_not_delay_other_requests(server: Server) -> None:
    with stopped(reader(server)):
        waiting = server.stream(LISTEN, audio=LONG)
        assert server.ask(SPEAK, text="two green windows").error is None
        assert server.ask(LISTEN, audio=SHORT).error is None
        refused = server.ask(LISTEN, audio=bytes(MAX_FILE_BYTES + 1))
        assert f"audio: expected at most {MAX_FILE_BYTES} bytes" in refused.error
    assert waiting.listen().error is None


def test_audio_process_death_fails_only_one_request(server: Server) -> None:
    pid, victim = server.pid, reader(server)
    memory = Path(f"/proc/{victim}/fd/{read_process(victim).command.split()[-2]}")
    with stopped(victim):
        waiting = server.stream(LISTEN, audio=LONG)
        server.until(lambda: memory.stat().st_size > 0)  # it was given the recording
        os.kill(victim, signal.SIGKILL)
    assert "preprocessor: internal error" in (waiting.listen().error or "")
    assert server.ask(LISTEN, audio=LONG).error is None
    assert reader(server) != victim
    assert (server.pid, server.state()) == (pid, "ready")
