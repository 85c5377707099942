"""Live audio gives the frames of the whole recording, for any parts, pace and concurrent sessions."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.codecs.mimi import load
from stretto.codecs.mimi_encoder import MimiEncoder
from stretto.errors import Closing, InvalidRequest, Overloaded
from stretto.families.tiny.family import TINY
from stretto.family.live_audio import FrameIds, LiveInput
from stretto.preprocessing import hearing as hearing_module
from stretto.preprocessing.audio import resample
from stretto.preprocessing.hearing import LOST, MAX_WAITING, Hearing, open_hearing
from stretto.preprocessing.hearing_worker import Resampler, Streams, answer
from stretto.records.prompt import AudioPart
from tests.codecs.test_mimi import write
from tests.patience import PATIENCE_S, until
from tests.recordings import speech
from tests.tiers import by_night

RATE = 24_000
BEFORE_S = 1.0
AFTER_S = 1.5
FIRST_IDS = (0, 100, 200, 300)  # of the small codec's four codebooks
STOPPED = 1 << 10


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveInput:
    codec = load(write(tmp_path_factory.mktemp("hearing")))
    return LiveInput(MimiEncoder(codec), RATE, BEFORE_S, AFTER_S, lambda: FrameIds(FIRST_IDS))


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    """Return 42 frames, which is more than four windows of the encoder's transformer."""
    return speech(42 * 1920, RATE)


def frames_of(live: LiveInput, pcm: np.ndarray) -> list[int]:
    """Return the ids of a whole recording."""
    assert isinstance(live.encoder, MimiEncoder)
    codes = live.encoder.encode_all(np.pad(pcm, (int(BEFORE_S * RATE), int(AFTER_S * RATE))))
    ids: list[int] = (codes.T + np.array(FIRST_IDS)).reshape(-1).tolist()
    return ids


class Inside:
    """Fake hearing process inside this process, which may hang or end."""

    def __init__(self, live: LiveInput) -> None:
        self.live, self.streams = live, Streams(live)
        self.memory = os.memfd_create("hearing")
        self.jobs: list[dict[str, Any]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.has_job = threading.Event()
        self.dies = self.fails = False
        self.num_starts = 1

    def ask(self, job: dict[str, Any], max_wait_s: float) -> dict[str, Any] | None:
        self.has_job.set()
        self.may_run.wait()
        if self.fails:
            self.fails = False
            raise OSError("the disk is full")
        if self.dies:
            self.dies = False
            self.restart()
            return None
        self.jobs.append(job)
        made: dict[str, Any] = json.loads(json.dumps(answer(self.streams, self.memory, json.loads(json.dumps(job)))))
        return made

    def restart(self) -> None:
        self.streams, self.num_starts = Streams(self.live), self.num_starts + 1

    def release_memory(self) -> None:
        os.ftruncate(self.memory, 0)

    def close(self) -> None:
        os.close(self.memory)


class Client:
    """Sessions of a test, whose parts are answered on the queue's thread."""

    def __init__(self, hearing: Hearing) -> None:
        self.hearing = hearing
        self.answers: dict[str, list[AudioPart]] = {}
        self.order: list[str] = []  # sessions of all answers
        self.ended: set[str] = set()
        self.changed = threading.Condition()

    def send(self, session: str, number: int, pcm: np.ndarray, is_last: bool = False, rate: int | None = RATE) -> None:
        given = (pcm.astype(np.float32), rate, is_last, "host", self._take, lambda: session not in self.ended)
        self.hearing.submit(session, number, *given)

    def _take(self, part: AudioPart) -> None:
        with self.changed:
            self.order.append(part.session)
            self.answers.setdefault(part.session, []).append(part)
            self.changed.notify_all()

    def until(self, session: str, num_answers: int) -> list[AudioPart]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.answers.get(session, ())) >= num_answers, timeout=PATIENCE_S)
            return self.answers[session]

    def ids(self, session: str, num_answers: int) -> list[int]:
        parts = self.until(session, num_answers)
        assert [part.part for part in parts] == list(range(num_answers))
        assert not any(part.lost for part in parts)
        found: list[int] = np.concatenate([np.frombuffer(part.frames, np.int32) for part in parts]).tolist()
        return found


@pytest.fixture
def inside(live: LiveInput) -> Inside:
    return Inside(live)


@pytest.fixture
def client(inside: Inside) -> Iterator[Client]:
    hearing = Hearing(inside, inside.live.encoder.num_codebooks)
    yield Client(hearing)
    hearing.close()


@pytest.mark.parametrize("seed", [0, *by_night(1, 2, 3)])
def test_live_encoding_is_independent_of_parts_and_other_sessions(
    client: Client, inside: Inside, live: LiveInput, pcm: np.ndarray, seed: int
) -> None:
    """There are random histories of five sessions, and some parts are empty."""
    random = np.random.default_rng(seed)
    recordings = {f"s{at}": np.roll(pcm, 777 * at)[: (5 + 9 * at) * 1920 + 100 * at] for at in range(5)}
    left, numbers = dict(recordings), dict.fromkeys(recordings, 0)
    while left:
        name = str(random.choice(list(left)))
        size = int(random.choice([0, 1, 1920, 700, 9000, 30_000]))
        part, rest = left[name][:size], left[name][size:]
        try:
            client.send(name, numbers[name], part, is_last=not len(rest))
        except Overloaded:
            client.until(name, numbers[name])
            continue
        numbers[name] += 1
        left[name] = rest
        if not len(rest):
            del left[name]
    for name, recording in recordings.items():
        assert client.ids(name, numbers[name]) == frames_of(live, recording), name
    assert client.hearing.num_encoded >= client.hearing.num_jobs > 0
    assert client.hearing.num_streams == len(inside.streams) == 0


def test_waiting_parts_are_combined_into_one_job(client: Client, inside: Inside, pcm: np.ndarray) -> None:
    """Parts that arrive during a job wait for its end and form the next job."""
    inside.may_run.clear()
    client.send("first", 0, pcm[:1920])
    assert inside.has_job.wait(PATIENCE_S)
    for at in range(6):
        client.send(f"s{at}", 0, pcm[:1920])
    inside.may_run.set()
    for at in range(6):
        client.until(f"s{at}", 1)
    sizes = [len(job["parts"]) for job in inside.jobs if job["parts"]]
    assert sizes == [1, 6]


def test_long_audio_part_does_not_delay_other_sessions(client: Client, inside: Inside, pcm: np.ndarray) -> None:
    inside.may_run.clear()
    client.send("long", 0, np.tile(pcm, 5))
    assert inside.has_job.wait(PATIENCE_S)
    client.send("short", 0, pcm[:1920])
    inside.may_run.set()
    client.until("long", 1)
    assert client.order == ["short", "long"]


def test_encoder_process_death_loses_sessions_but_new_ones_start(
    client: Client, inside: Inside, live: LiveInput, pcm: np.ndarray
) -> None:
    client.send("old", 0, pcm[:9000])
    client.until("old", 1)
    inside.dies = True
    client.send("old", 1, pcm[:9000])
    assert client.until("old", 2)[-1].lost == LOST
    client.send("old", 2, pcm[:9000])
    assert client.until("old", 3)[-1].lost == LOST, "the state of the earlier parts is gone"
    client.send("new", 0, pcm, is_last=True)
    assert client.ids("new", 1) == frames_of(live, pcm)


def test_failed_encoder_process_is_replaced(client: Client, inside: Inside, live: LiveInput, pcm: np.ndarray) -> None:
    """The process would keep the streams of lost sessions, whose names could not be used again."""
    client.send("old", 0, pcm[:9000])
    client.until("old", 1)
    inside.fails = True
    client.send("old", 1, pcm[:9000])
    assert client.until("old", 2)[-1].lost == LOST
    client.send("new", 0, pcm, is_last=True)
    assert client.ids("new", 1) == frames_of(live, pcm)
    assert inside.num_starts == 2
    assert len(inside.streams) == 0


def test_encoder_recovers_after_a_failed_process_restart(
    client: Client, inside: Inside, live: LiveInput, pcm: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("no memory")

    inside.fails = True
    with monkeypatch.context() as patched:
        patched.setattr(inside, "restart", refuse)
        client.send("old", 0, pcm[:9000])
        assert client.until("old", 1)[-1].lost == LOST
        client.send("new", 0, pcm, is_last=True)
        assert client.ids("new", 1) == frames_of(live, pcm)


def test_invalid_audio_parts_have_no_effect(client: Client, live: LiveInput, pcm: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match="sample_rate: expected the rate of the session's audio in Hz, got none"):
        client.send("s", 0, pcm[:0], rate=None)
    client.send("s", 0, pcm[:1000])
    with_nan = pcm[:100].copy()
    with_nan[3] = np.nan
    for number, part, rate, message in (
        (0, pcm, RATE, r"session\.part: expected 1, the number of the next part, got 0"),
        (2, pcm, RATE, r"session\.part: expected 1, the number of the next part, got 2"),
        (1, with_nan, RATE, "pcm_in: expected finite samples, got NaN or infinity"),
        (1, 0 * pcm + 2.1, RATE, r"pcm_in: expected samples in \[-1, 1\], got a peak of 2\.1"),
        (1, pcm, 8000, "sample_rate: expected 24000, as the session began, got 8000"),
        (1, pcm, 7999, r"sample_rate: expected a rate in \[8000, 192000\] Hz, got 7999"),
        (1, pcm, None, "sample_rate: expected the rate of pcm_in in Hz, got none"),
        (1, np.zeros(31 * RATE), RATE, r"pcm_in: expected at most 30 s in a part, got 31\.0 s"),
        (1, np.zeros((2, 2)), RATE, r"pcm_in: expected mono samples \[n\] float32"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            client.send("s", number, part, rate=rate)
    client.send("s", 1, pcm[1000:], is_last=True)
    assert client.ids("s", 2) == frames_of(live, pcm)


def test_waiting_parts_and_sessions_are_limited(client: Client, inside: Inside, pcm: np.ndarray) -> None:
    inside.may_run.clear()
    for number in range(MAX_WAITING):
        client.send("s", number, pcm[:10])
    with pytest.raises(Overloaded, match="8 parts of this session are waiting, try again"):
        client.send("s", MAX_WAITING, pcm[:10])
    client.hearing._places.limit = 1
    with pytest.raises(Overloaded, match="1 sessions are open, try again"):
        client.send("other", 0, pcm[:10])
    inside.may_run.set()
    client.until("s", MAX_WAITING)


def test_ended_encoder_sessions_are_dropped(
    client: Client, inside: Inside, pcm: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their slots are free again, and waiting parts are not encoded."""
    monkeypatch.setattr(hearing_module, "POLL_S", 0.01)
    client.send("gone", 0, pcm[:100])
    client.until("gone", 1)
    inside.may_run.clear()
    inside.has_job.clear()
    client.send("other", 0, pcm[:100])
    assert inside.has_job.wait(PATIENCE_S)
    client.send("gone", 1, pcm)
    client.ended.add("gone")
    inside.may_run.set()
    assert client.until("gone", 2)[-1].lost == LOST
    client.send("other", 1, pcm[:100])
    client.until("other", 2)
    assert client.hearing.num_streams == len(inside.streams) == 1
    assert [name for job in inside.jobs for name, *_ in job["parts"]] == ["gone", "other", "other"]
    client.ended.add("other")
    until(lambda: not client.hearing.num_streams and not len(inside.streams))


def test_closed_audio_service_refuses_new_parts(inside: Inside, pcm: np.ndarray) -> None:
    hearing = Hearing(inside, inside.live.encoder.num_codebooks)
    hearing.close()
    with pytest.raises(Closing):
        Client(hearing).send("late", 0, pcm[:100])


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("sizes", [[1, 5000, 333], [1920]])
def test_resampled_parts_join_to_the_resampled_recording(rate: int, sizes: list[int], pcm: np.ndarray) -> None:
    resampler, made, at, index = Resampler(rate, RATE), [], 0, 0
    while at < len(pcm):
        size = sizes[index % len(sizes)]
        at, index = at + size, index + 1
        made.append(resampler.push(pcm[at - size : at], at >= len(pcm)))
    wanted = resample(pcm, rate, RATE)
    assert sum(map(len, made)) == len(wanted)
    np.testing.assert_allclose(np.concatenate(made), wanted, atol=1e-6)


def test_families_without_live_audio_have_no_encoder_process(tmp_path: Path) -> None:
    assert open_hearing(TINY, tmp_path, "cpu") is None
