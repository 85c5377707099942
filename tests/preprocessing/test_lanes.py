"""Lanes: order of jobs, refusals, and released resources."""

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from stretto.errors import Closing, Overloaded
from stretto.preprocessing.audio import SHORT_BYTES, AudioLanes, AudioReader, Load
from tests.patience import PATIENCE_S, until

LONG = SHORT_BYTES + 1
LIMIT = Load(8 * LONG, 16)  # a host alone has half of it


class Reading:
    """Fake reader process that reads nothing and records that it was ended."""

    def __init__(self, niceness: int) -> None:
        self.niceness, self.is_closed = niceness, False

    def read(self, recording: Any, max_s: float, rate: int, is_cancelled: Callable[[], bool]) -> np.ndarray:
        return np.zeros(self.niceness, np.float32)

    def close(self) -> None:
        self.is_closed = True


class Held:
    """Job that runs until the test releases it."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.refusal: Exception | None = None

    def run(self, read: AudioReader) -> None:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.ended.set()

    def refuse(self, error: Exception) -> None:
        self.refusal = error
        self.ended.set()


class Opened(AudioLanes):
    """Lanes whose processes tests can inspect."""

    def __init__(self, num_long: int = 1) -> None:
        self.processes: list[Reading] = []
        super().__init__(self._open, num_long, LIMIT)

    def _open(self, niceness: int) -> Reading:
        self.processes.append(Reading(niceness))
        return self.processes[-1]

    def hold(self, num_bytes: int, host: str = "", has_images: bool = False) -> Held:
        job = Held()
        self.submit(num_bytes, job.run, job.refuse, host, has_images=has_images)
        return job


@pytest.fixture
def lanes() -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def open_lanes(**arguments: int) -> Opened:
        made.append(Opened(**arguments))
        return made[-1]

    yield open_lanes
    for each in made:
        each.close()


def test_a_short_recording_does_not_wait_for_long_ones(lanes: Callable[..., Opened]) -> None:
    opened = lanes()
    long, waiting = opened.hold(LONG), opened.hold(LONG)
    assert long.begun.wait(PATIENCE_S)
    short = opened.hold(SHORT_BYTES)
    short.may_end.set()
    assert short.ended.wait(PATIENCE_S)
    assert not waiting.begun.is_set()
    long.may_end.set()
    waiting.may_end.set()
    assert waiting.ended.wait(PATIENCE_S)


def test_long_recordings_are_read_in_parallel_in_separate_lanes(lanes: Callable[..., Opened]) -> None:
    opened = lanes(num_long=2)
    jobs = [opened.hold(LONG) for _ in range(2)]
    assert all(job.begun.wait(PATIENCE_S) for job in jobs)
    for job in jobs:
        job.may_end.set()


def test_audio_does_not_wait_for_images(lanes: Callable[..., Opened]) -> None:
    """The process for images starts with the first one, at low priority."""
    opened = lanes()
    assert len(opened.processes) == 2
    image, waiting = opened.hold(1, has_images=True), opened.hold(1, has_images=True)
    assert image.begun.wait(PATIENCE_S)
    assert opened.processes[2].niceness > 0
    jobs = [opened.hold(SHORT_BYTES), opened.hold(LONG)]
    for job in jobs:
        job.may_end.set()
        assert job.ended.wait(PATIENCE_S)
    assert not waiting.begun.is_set()
    image.may_end.set()
    waiting.may_end.set()
    assert waiting.ended.wait(PATIENCE_S)
    assert len(opened.processes) == 3


def test_request_is_refused_if_its_process_cannot_be_started(lanes: Callable[..., Opened]) -> None:
    opened = lanes()
    opened._open_process = Mock(side_effect=OSError("no memory"))
    refused = opened.hold(1, has_images=True)
    assert refused.ended.wait(PATIENCE_S)
    assert str(refused.refusal) == "no memory"


def test_a_job_can_tell_its_process_that_it_is_cancelled(lanes: Callable[..., Opened]) -> None:
    opened, found, is_cancelled = lanes(), list[Any](), Mock(return_value=True)
    opened.submit(1, found.append, lambda error: None, "", is_cancelled)
    until(lambda: found)
    assert found[0].keywords["is_cancelled"] is is_cancelled


def test_long_recordings_are_read_at_low_cpu_priority(lanes: Callable[..., Opened]) -> None:
    opened = lanes(num_long=2)
    short, *long = [process.niceness for process in opened.processes]
    assert short == 0
    assert min(long) > 0


def test_lane_bytes_over_the_limit_are_refused(
    lanes: Callable[..., Opened],
) -> None:
    opened = lanes()
    jobs = [opened.hold(LONG) for _ in range(4)]
    told = f"{4 * LONG} bytes are being processed, {4 * LONG} of them from this host \\(limit {8 * LONG}\\)"
    with pytest.raises(Overloaded, match=told):
        opened.hold(1)
    jobs += [opened.hold(LONG, "other"), opened.hold(LONG, "other")]
    for job in jobs:
        job.may_end.set()
    assert all(job.ended.wait(PATIENCE_S) for job in jobs)
    until(lambda: opened.held == Load(0, 0))
    opened.hold(LONG).may_end.set()


def test_requests_beyond_the_limit_are_refused(lanes: Callable[..., Opened]) -> None:
    opened = lanes()
    jobs = [opened.hold(1) for _ in range(8)]
    with pytest.raises(
        Overloaded, match=r"8 requests are being processed, 8 of them from this host \(limit 16\); try again"
    ):
        opened.hold(1)
    jobs += [opened.hold(1, "other") for _ in range(4)]
    with pytest.raises(Overloaded, match="12 requests are being processed, 4 of them from this host"):
        opened.hold(1, "other")
    for job in jobs:
        job.may_end.set()


def test_audio_lanes_alternate_between_hosts(lanes: Callable[..., Opened]) -> None:
    opened = lanes()
    running, *crowd = (opened.hold(1, "crowd") for _ in range(4))
    assert running.begun.wait(PATIENCE_S)
    other = opened.hold(1, "other")
    for job in (running, crowd[0], other):
        job.may_end.set()
    assert other.ended.wait(PATIENCE_S)
    assert not crowd[2].begun.is_set()
    for job in crowd:
        job.may_end.set()


def test_lane_survives_a_raising_job(lanes: Callable[..., Opened]) -> None:
    def fail(read: AudioReader) -> None:
        raise RuntimeError("boom")

    opened = lanes()
    opened.submit(1, fail, lambda error: None)
    after = opened.hold(1)
    assert after.begun.wait(PATIENCE_S)
    after.may_end.set()
    until(lambda: opened.held == Load(0, 0))


def test_job_audio_is_freed_when_the_job_is_done(lanes: Callable[..., Opened]) -> None:
    opened = lanes()
    audio, done = np.zeros(10), threading.Event()
    freed = weakref.ref(audio)

    def run(read: AudioReader, audio: np.ndarray = audio) -> None:
        done.set()

    opened.submit(80, run, lambda error: None)
    assert done.wait(PATIENCE_S)
    del audio, run
    until(lambda: freed() is None)


def test_closing_lanes_finishes_running_jobs_and_refuses_others(lanes: Callable[..., Opened]) -> None:
    opened = lanes()
    running, waiting = opened.hold(1), opened.hold(1)
    assert running.begun.wait(PATIENCE_S)
    closing = threading.Thread(target=opened.close)
    closing.start()
    until(lambda: opened.is_closed)
    running.may_end.set()
    closing.join(PATIENCE_S)
    assert running.refusal is None
    assert isinstance(waiting.refusal, Closing)
    with pytest.raises(Closing, match="stopping"):
        opened.hold(1)
    assert all(process.is_closed for process in opened.processes)
