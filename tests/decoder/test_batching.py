import numpy as np
import pytest
import torch

from stretto.decoder import batching
from stretto.decoder.batching import ChunkJob, HostTurns, LaunchedBatch, next_group
from stretto.decoder.chunk_queue import PendingChunk
from stretto.decoder.launching import HostLauncher, stack
from stretto.decoder.sessions import DecoderSession, Renderer
from stretto.decoder.windows import Windower
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from tests.fakes import FakeCodec, RecordedReply


def make_job(
    name: str, pushes: list[int], codec: FakeCodec, due_s: float = 0.0, is_alone: bool = False, host: str = ""
) -> ChunkJob:
    """Push chunks with these numbers of frames and return the last job."""
    form = OutputForm(deterministic=is_alone)
    session = DecoderSession(Windower(codec.spec), codec.initial_state(1), Renderer(form, codec.spec), 0.0)
    window = None
    for size in pushes:
        window = session.windower.push(np.full((2, size), len(name)), False)
    assert window is not None
    reply = RecordedReply()
    reply.host = host
    return ChunkJob(PendingChunk(name, Chunk(0, Segment.AUDIO), None, reply), session, window, due_s)


def names(jobs: list[ChunkJob]) -> list[str]:
    return [job.pending.utterance for job in jobs]


def test_batches_have_equal_shapes_and_earliest_deadline_first() -> None:
    codec = FakeCodec()
    pushes = {
        "a": ([4, 4], 3.0),
        "b": ([4], 2.0),
        "c": ([4, 4], 1.5),
        "d": ([3], 2.5),
        "e": ([4], 9.0),
        "f": ([4], 8.0),
    }
    jobs = [make_job(name, sizes, codec, due_s) for name, (sizes, due_s) in pushes.items()]
    groups, turns = [], HostTurns()
    while jobs:
        group = next_group(jobs, lambda window: 2, turns)
        groups.append(names(group))
        jobs = [job for job in jobs if job not in group]
    assert groups == [["c", "a"], ["b", "f"], ["d"], ["e"]]


def test_clients_without_audio_come_before_those_that_have_underrun() -> None:
    codec = FakeCodec()
    jobs = [make_job(name, [4], codec, due_s) for name, due_s in (("plays", 1.0), ("waits", 2.0), ("dry", 0.5))]
    for job in (jobs[0], jobs[2]):
        job.session.dry_s = job.due_s
    assert names(next_group(jobs, lambda window: 3, HostTurns())) == ["waits", "dry", "plays"]


def test_job_group_takes_the_first_jobs_up_to_the_limit() -> None:
    jobs = [make_job(name, [4], FakeCodec()) for name in "abcde"]
    assert names(next_group(jobs, lambda window: 3, HostTurns())) == ["a", "b", "c"]


def test_hosts_take_turns_in_the_first_job_of_a_batch() -> None:
    """The jobs of one host are all due earlier than the other's; those of equal shape join its batches."""
    codec, turns = FakeCodec(), HostTurns()
    jobs = [make_job(f"a{index}", [4], codec, index, host="a") for index in range(6)]
    jobs += [make_job(f"b{index}", [3], codec, 100 + index, host="b") for index in range(2)]
    jobs += [make_job("c0", [4], codec, 200, host="c")]
    groups = []
    while jobs:
        group = next_group(jobs, lambda window: 2, turns)
        groups.append(names(group))
        jobs = [job for job in jobs if job not in group]
    assert groups == [["a0", "a1"], ["b0", "b1"], ["c0", "a2"], ["a3", "a4"], ["a5"]]


def test_new_host_is_next_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_HOSTS", 2)
    turns = HostTurns()
    assert [turns.next(hosts) for hosts in (["a"], ["a", "b"], ["a", "b"], ["a", "b", "c"])] == ["a", "b", "a", "c"]
    assert turns.next(["a", "b"]) == "b"


def test_deterministic_jobs_are_not_batched() -> None:
    codec = FakeCodec()
    jobs = [make_job(name, [4], codec, due_s, is_alone=name in "bd") for due_s, name in enumerate("abcde")]
    groups, turns = [], HostTurns()
    while jobs:
        group = next_group(jobs, lambda window: 8, turns)
        groups.append(names(group))
        jobs = [job for job in jobs if job not in group]
    assert groups == [["a", "c", "e"], ["b"], ["d"]]


def test_batched_sessions_keep_separate_states() -> None:
    codec = FakeCodec()
    group = [make_job("x", [4], codec), make_job("xyz", [4], codec)]
    batch = LaunchedBatch(group, HostLauncher(codec, "float32"), codec.spec)
    assert [job.session.state.tolist() for job in group] == [[[3.0]], [[9.0]]]
    assert batch.pcm().shape == (2, 12)


def test_each_row_of_a_batch_has_its_own_position() -> None:
    jobs = [make_job(name, [4] * num_chunks, FakeCodec()) for name, num_chunks in (("a", 2), ("b", 5), ("c", 3))]
    assert stack([job.window for job in jobs], [job.session.state for job in jobs]).first.tolist() == [3, 15, 7]


def test_session_state_does_not_share_batch_memory() -> None:
    codec = FakeCodec()
    jobs = [make_job(name, [4], codec) for name in "abc"]
    LaunchedBatch(jobs, HostLauncher(codec, "float32"), codec.spec)
    for job in jobs:
        assert job.session.state.untyped_storage().nbytes() == job.session.state.nbytes


def test_codec_returning_wrong_sample_count_is_detected() -> None:
    codec = FakeCodec()
    codec.decode = lambda window: (torch.zeros(1, 5), window.state)  # type: ignore[method-assign]
    batch = LaunchedBatch([make_job("x", [4], codec)], HostLauncher(codec, "float32"), codec.spec)
    with pytest.raises(AssertionError, match=r"fake returned pcm \(1, 5\), expected \(1, 12\)"):
        batch.pcm()
