import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stretto.codecs.base import Whole, Window
from stretto.config import DecoderConfig
from stretto.decoder.batching import next_group
from stretto.decoder.launching import Flight, own_states, stack
from stretto.decoder.sessions import Sessions
from stretto.decoder.windows import FrameWindow
from stretto.decoder.worker import MAX_FAILED_TURNS, DecoderWorker
from stretto.decoding.states import State
from stretto.errors import Cancelled, Closing, InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import DecodingTime
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from tests.codecs.conftest import make_codec
from tests.fakes import FakeCodec, RecordedReply
from tests.patience import PATIENCE_S, until


@pytest.fixture
def codec() -> FakeCodec:
    return FakeCodec(poison=7)


@pytest.fixture
def worker(codec: FakeCodec) -> Iterator[DecoderWorker]:
    worker = DecoderWorker(codec, DecoderConfig(max_batch=8, stop_timeout_s=PATIENCE_S))
    yield worker
    codec.gate.set()
    worker.stop()


def push(
    worker: DecoderWorker,
    utterance: str,
    index: int,
    codes: np.ndarray | None,
    is_final: bool = False,
    log: list[RecordedReply] | None = None,
) -> RecordedReply:
    reply = RecordedReply(log, (utterance, index))
    worker.push(utterance, Chunk(index, Segment.AUDIO, is_final=is_final), codes, reply)
    return reply


def frames(*values: int) -> np.ndarray:
    return np.array([values, values], dtype=np.int32)


def expected_pcm(codes: np.ndarray) -> np.ndarray:
    """Return FakeCodec's samples, computed one frame at a time."""
    code, total, samples = codes[0].astype(float), 0.0, []
    for t in range(len(code)):
        before, after = code[t - 1] if t > 0 else 0.0, code[t + 1] if t + 1 < len(code) else 0.0
        total += code[t]
        samples += [code[t] + before / 10 + after / 100 + total / 1000] * 4
    return np.array(samples)


def joined(replies: list[RecordedReply]) -> np.ndarray:
    return np.concatenate([reply.pcm for reply in replies if reply.wait().pcm is not None])


def pile_up(worker: DecoderWorker, codec: FakeCodec) -> RecordedReply:
    """Keep the worker busy, so that later pushes wait until `codec.gate` opens."""
    codec.gate.clear()
    reply = push(worker, "plug", 0, frames(1, 1, 1, 1, 1, 1), is_final=True)
    while worker.stats()["waiting_chunks"]:
        time.sleep(0.001)
    return reply


def test_sixteen_interleaved_utterances_stay_separate_and_in_order(worker: DecoderWorker, codec: FakeCodec) -> None:
    rng, log, waiting = random.Random(3), [], {}
    texts = {f"u{i}": np.random.default_rng(i).integers(0, 7, (2, rng.randint(1, 40))) for i in range(16)}
    for name, codes in texts.items():
        cuts = sorted(rng.choices(range(codes.shape[1] + 1), k=4))
        parts = np.split(codes, cuts, axis=1)
        waiting[name] = [(i, part, i == len(parts) - 1) for i, part in enumerate(parts)]
    replies: dict[str, list[RecordedReply]] = {name: [] for name in texts}
    while waiting:
        name = rng.choice(list(waiting))
        index, part, is_final = waiting[name].pop(0)
        replies[name].append(push(worker, name, index, part, is_final, log))
        if is_final:
            del waiting[name]
    for name, codes in texts.items():
        assert np.allclose(joined(replies[name]), expected_pcm(codes), atol=1e-5)
        assert [reply.name for reply in log if reply.name[0] == name] == [(name, i) for i in range(5)]
    assert worker.stats()["open_utterances"] == 0
    assert worker.stats()["chunks"] == 80


def test_batched_codec_equals_unbatched_codec() -> None:
    codec = make_codec()
    codes = [np.random.default_rng(i).integers(0, 16, (3, 30 + i % 3)) for i in range(6)]

    def decode(order: list[tuple[int, int]], max_batch: int) -> list[np.ndarray]:
        worker = DecoderWorker(codec, DecoderConfig(max_batch=max_batch))
        replies: list[list[RecordedReply]] = [[] for _ in codes]
        for i, step in order:
            part = np.split(codes[i], [4, 10, 22], axis=1)[step]
            replies[i].append(push(worker, str(i), step, part, step == 3))
        pcm = [joined(each) for each in replies]
        worker.stop()
        return pcm

    alone = decode([(i, step) for i in range(6) for step in range(4)], 1)
    together = decode([(i, step) for step in range(4) for i in range(6)], 8)
    for a, b in zip(alone, together, strict=True):
        assert np.abs(a - b).max() <= 1e-5


@pytest.mark.nightly  # by day the memory of ten minutes below, and exactness in shorter streams
def test_ten_minute_stream_is_exact_with_constant_memory() -> None:
    """The reference is float64 in much larger windows, which match a one-shot decode (codecs/tiny/test_codec.py)."""
    codec, total, size = make_codec(), 16_000, 25
    codes = random_codes(codec, 1, total)
    truth = stream(make_codec().double(), codes, chunks_of(1000, total))[0].float().numpy()
    worker = DecoderWorker(codec, DecoderConfig())
    at, worst, marks = 0, 0.0, []
    for index, part in enumerate(np.split(codes[0].numpy(), total // size, axis=1)):
        pcm = push(worker, "long", index, part, (index + 1) * size == total).wait(PATIENCE_S).pcm
        assert pcm is not None
        worst = max(worst, float(np.abs(pcm - truth[at : at + len(pcm)]).max()))
        at += len(pcm)
        if index in (60, 590):
            marks.append((worker.stats()["session_bytes"], resident_mb()))
    worker.stop()
    assert at == len(truth) == 600 * 24_000
    assert worst <= 1e-5
    assert truth.std() > 0.02
    (early_bytes, early_mb), (late_bytes, late_mb) = marks
    assert late_bytes == early_bytes < 20_000
    assert late_mb - early_mb < 12  # the samples alone are 48 MB


def resident_mb() -> float:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_waiting_chunks_of_different_utterances_decode_as_one_batch(worker: DecoderWorker, codec: FakeCodec) -> None:
    plug = pile_up(worker, codec)
    replies = [push(worker, f"u{i}", step, frames(1, 2, 3, 4)) for step in range(2) for i in range(3)]
    codec.gate.set()
    for reply in [plug, *replies]:
        reply.wait()
    assert codec.batches[1:] == [(3, 0, 3, 1), (3, 1, 4, 1)]
    assert worker.stats()["largest_batch"] == 3


def test_batch_size_never_exceeds_the_limit(codec: FakeCodec) -> None:
    worker = DecoderWorker(codec, DecoderConfig(max_batch=4))
    pile_up(worker, codec)
    replies = [push(worker, f"u{i}", 0, frames(1, 2, 3, 4)) for i in range(10)]
    codec.gate.set()
    for reply in replies:
        reply.wait()
    assert [batch[0] for batch in codec.batches[1:]] == [4, 4, 2]
    worker.stop()


def test_batches_on_the_host_do_not_depend_on_what_clients_play(
    worker: DecoderWorker, codec: FakeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at every open utterance, because a batch is short anyway."""
    monkeypatch.delattr(Sessions, "spare_s")
    pile_up(worker, codec)
    reply = push(worker, "u", 0, frames(1, 2, 3, 4))
    codec.gate.set()
    reply.wait()
    assert reply.error is None


def test_whole_utterance_codecs_reply_one_at_a_time(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, answered, log = codec.decode, list[int](), list[RecordedReply]()

    def counted(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        answered.append(len(log))
        return decode(window)

    monkeypatch.setattr(codec, "spec", replace(codec.spec, streaming=Whole(9)))
    monkeypatch.setattr(codec, "decode", counted)
    worker = DecoderWorker(codec, DecoderConfig(max_batch=8))
    pile_up(worker, codec)
    replies = [push(worker, f"u{i}", 0, frames(1, 2, 3), is_final=True, log=log) for i in range(3)]
    codec.gate.set()
    for reply in replies:
        assert np.allclose(reply.wait().pcm, expected_pcm(frames(1, 2, 3)))
    assert answered == [0, 0, 1, 2]  # before the first, which they have waited for, and before each of them
    worker.stop()


@pytest.mark.parametrize("num_steps", [0, 3])
def test_waiting_utterances_receive_progress(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    """After each step of a codec that reports them, and after each batch; an answered chunk gets none."""
    steps, decode = list[Callable[[], None]](), codec.decode

    def stepwise(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        made = decode(window)  # waits at the gate
        for step in num_steps * steps:
            step()
        return made

    monkeypatch.setattr("stretto.decoder.loop.PROGRESS_S", -1.0)
    monkeypatch.setattr(codec, "spec", replace(codec.spec, streaming=Whole(9)))
    monkeypatch.setattr(codec, "decode", stepwise)
    if num_steps:
        monkeypatch.setattr(codec, "report_progress", steps.append, raising=False)
    worker = DecoderWorker(codec, DecoderConfig(max_batch=8))
    pile_up(worker, codec)
    progress, replies = [0, 0, 0], list[RecordedReply]()
    for number in range(3):

        def count(number: int = number) -> None:
            progress[number] += 1

        replies.append(RecordedReply())
        chunk = Chunk(0, Segment.AUDIO, is_final=True)
        worker.push(f"u{number}", chunk, frames(1, 2, 3), replies[-1], on_progress=count)
    codec.gate.set()
    for reply in replies:
        assert reply.wait().error is None
    assert progress == [(number + 2) * (num_steps + 1) for number in range(3)]  # they also waited for the first batch
    worker.stop()


def test_nothing_is_decoded_for_a_disconnected_client(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chunk has been accepted and waits for an earlier one."""
    decode, replies = codec.decode, list[RecordedReply]()

    def leave(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        replies[1].cancelled = len(codec.batches) == 1  # while the first of them is decoded
        return decode(window)

    worker = DecoderWorker(codec, DecoderConfig(max_batch=1))
    pile_up(worker, codec)
    replies += [push(worker, f"u{i}", 0, frames(i, 2, 3), is_final=True) for i in range(3)]
    monkeypatch.setattr(codec, "decode", leave)
    codec.gate.set()
    assert isinstance(replies[1].wait().error, Cancelled)
    for i in (0, 2):
        assert np.allclose(replies[i].wait().pcm, expected_pcm(frames(i, 2, 3)))
    worker.stop()
    assert len(codec.batches) == 3
    assert (worker.stats()["cancelled"], worker.stats()["open_utterances"]) == (1, 0)


def test_chunk_with_too_few_frames_returns_no_samples(worker: DecoderWorker) -> None:
    first = push(worker, "u", 0, frames(1)).wait()
    text = push(worker, "u", 1, None).wait()
    last = push(worker, "u", 2, None, is_final=True).wait()
    assert first.pcm is None
    assert text.pcm is None
    assert (first.event["start_s"], first.event["duration_s"]) == (0, 0)
    assert np.allclose(last.pcm, expected_pcm(frames(1)))
    assert last.event["report"]["audio_s"] == 0.04


def test_start_times_follow_the_samples(worker: DecoderWorker) -> None:
    replies = [push(worker, "u", i, frames(1, 2, 3), i == 3).wait() for i in range(4)]
    assert [reply.event["start_s"] for reply in replies] == [0, 0.08, 0.2, 0.32]
    assert [reply.event["duration_s"] for reply in replies] == [0.08, 0.12, 0.12, 0.16]


@pytest.mark.parametrize("bad", [frames(1, 8), np.zeros((3, 2), dtype=np.int32), frames(1, 7, 1)])
def test_invalid_chunk_fails_only_its_own_utterance(worker: DecoderWorker, codec: FakeCodec, bad: np.ndarray) -> None:
    """The last bad chunk makes the codec fail on a batch that also contains good windows."""
    plug = pile_up(worker, codec)
    good = [push(worker, f"good{i}", 0, frames(1, 2, 3)) for i in range(2)]
    failing = push(worker, "bad", 0, bad)
    good += [push(worker, "good2", 0, frames(3, 2, 1))]
    after = push(worker, "bad", 1, frames(1))
    codec.gate.set()
    assert failing.wait().error is not None
    assert isinstance(after.wait().error, InvalidRequest)
    for reply in [plug, *good]:
        assert reply.wait().error is None
    rest = [push(worker, f"good{i}", 1, None, is_final=True).wait() for i in range(3)]
    assert np.allclose(joined([good[2], rest[2]]), expected_pcm(frames(3, 2, 1)))
    assert worker.stats()["failed"] == 2


def test_gap_in_chunk_indices_fails_the_utterance(worker: DecoderWorker) -> None:
    push(worker, "u", 0, frames(1, 2)).wait()
    error = push(worker, "u", 2, frames(1, 2)).wait().error
    assert isinstance(error, InvalidRequest)
    assert error.field == "chunk.index"
    assert worker.stats()["open_utterances"] == 0


def test_cancelled_utterance_is_removed_from_the_worker(worker: DecoderWorker, codec: FakeCodec) -> None:
    push(worker, "u", 0, frames(1, 2)).wait()
    pile_up(worker, codec)
    cancelled = push(worker, "u", 1, frames(1, 2))
    cancelled.cancelled = True
    codec.gate.set()
    assert isinstance(cancelled.wait().error, Cancelled)
    assert worker.stats()["cancelled"] == 1
    assert worker.stats()["open_utterances"] == 0


def test_abandoning_fails_waiting_chunks_and_frees_the_utterance(worker: DecoderWorker, codec: FakeCodec) -> None:
    push(worker, "u", 0, frames(1, 2)).wait()
    pile_up(worker, codec)
    waiting = [push(worker, "u", index, frames(1, 2)) for index in (1, 2)]
    worker.abandon("u")
    codec.gate.set()
    assert all(isinstance(reply.wait().error, Cancelled) for reply in waiting)
    again = push(worker, "u", 0, frames(5, 5), is_final=True).wait()
    assert np.allclose(again.pcm, expected_pcm(frames(5, 5)))
    assert worker.stats()["open_utterances"] == 0


def test_idle_utterance_is_removed_from_the_worker(codec: FakeCodec) -> None:
    now = [0.0]
    worker = DecoderWorker(codec, DecoderConfig(idle_timeout_s=0.2), clock=lambda: now[0])
    push(worker, "u", 0, frames(1, 2)).wait()
    assert worker.stats()["open_utterances"] == 1
    now[0] = 1.0
    until(lambda: worker.stats()["expired"])
    assert isinstance(push(worker, "u", 1, frames(1)).wait().error, InvalidRequest)
    worker.stop()


def test_stopping_decodes_waiting_chunks_and_refuses_later_ones(worker: DecoderWorker, codec: FakeCodec) -> None:
    pile_up(worker, codec)
    waiting = [push(worker, f"u{i}", 0, frames(1, 2, 3), is_final=True) for i in range(20)]
    codec.gate.set()
    assert not worker.has_died
    worker.stop()
    assert not worker.has_died
    assert all(np.allclose(reply.wait(0.1).pcm, expected_pcm(frames(1, 2, 3))) for reply in waiting)
    assert isinstance(push(worker, "late", 0, frames(1)).wait(0.1).error, Closing)


def test_stop_timeout_fails_remaining_chunks(codec: FakeCodec) -> None:
    worker = DecoderWorker(codec, DecoderConfig(stop_timeout_s=0.05))
    plug = pile_up(worker, codec)
    waiting = push(worker, "u", 0, frames(1, 2, 3))
    waiting._log = Opener(codec)
    worker.stop()
    assert isinstance(waiting.wait(0.1).error, Closing)
    assert plug.wait().error is None


class Opener(list):
    """Reply that opens the codec's gate when it is recorded."""

    def __init__(self, codec: FakeCodec) -> None:
        self._codec = codec

    def append(self, _: RecordedReply) -> None:
        self._codec.gate.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_jobs_fail_when_the_decoder_thread_dies(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(jobs: list, limit: int, turns: object) -> list:
        raise SystemExit

    monkeypatch.setattr("stretto.decoder.loop.next_group", broken)
    worker = DecoderWorker(codec, DecoderConfig())
    assert isinstance(push(worker, "u", 0, frames(1, 2)).wait().error, Closing)
    worker._thread.join(PATIENCE_S)
    assert isinstance(push(worker, "v", 0, frames(1)).wait().error, Closing)


def failing(times: int, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises `times` times and then calls `otherwise`."""
    left = iter(range(times))

    def call(*arguments: Any) -> Any:
        if next(left, None) is not None:
            raise RuntimeError("a broken invariant")
        return otherwise(*arguments)

    return call


def test_exception_fails_only_the_current_jobs(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto.decoder.loop.next_group", failing(1, next_group))
    worker = DecoderWorker(codec, DecoderConfig())
    assert str(push(worker, "u", 0, frames(1, 2)).wait().error) == "a broken invariant"
    assert isinstance(push(worker, "u", 1, frames(1, 2)).wait().error, InvalidRequest)
    last = push(worker, "v", 0, frames(1, 2, 3), is_final=True).wait()
    assert np.allclose(last.pcm, expected_pcm(frames(1, 2, 3)))
    worker.stop()


def test_all_jobs_are_answered_despite_an_exception_after_decoding(worker: DecoderWorker, codec: FakeCodec) -> None:
    plug = pile_up(worker, codec)
    waiting = [push(worker, name, 0, frames(1, 2, 3)) for name in "ab"]
    worker._loop.clock = failing(1, time.perf_counter)
    codec.gate.set()
    assert str(plug.wait().error) == "a broken invariant"
    assert all(reply.wait().error is None for reply in waiting)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_decoder_thread_exits_after_repeated_failures(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto.decoder.loop.next_group", failing(10**6, next_group))
    worker = DecoderWorker(codec, DecoderConfig())
    errors = [push(worker, f"u{i}", 0, frames(1, 2)).wait().error for i in range(MAX_FAILED_TURNS)]
    assert all(isinstance(error, RuntimeError) for error in errors)
    worker._thread.join(PATIENCE_S)
    assert worker.has_died
    assert isinstance(push(worker, "v", 0, frames(1)).wait().error, Closing)


def test_late_samples_are_counted(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk starts a player, and the others come one and two hours later."""
    now = [0.0]
    worker = DecoderWorker(codec, DecoderConfig(idle_timeout_s=1e9), clock=lambda: now[0])
    for index in range(3):
        now[0] = 3600.0 * index
        assert push(worker, "u", index, frames(1, 2), index == 2).wait().error is None
    worker.stop()
    assert worker.stats()["late"] == 2


def test_undeliverable_reply_ends_only_its_own_utterance(worker: DecoderWorker) -> None:
    class Broken(RecordedReply):
        def send(self, pcm: np.ndarray | None, event: dict) -> None:
            raise OSError("the pipe is gone")

    broken = Broken(name="broken")
    worker.push("u", Chunk(0, Segment.AUDIO), frames(1, 2), broken)
    assert isinstance(broken.wait().error, OSError)
    assert push(worker, "v", 0, frames(1, 2)).wait().error is None
    assert worker.stats()["open_utterances"] == 1


NUM_LOOKS = 2  # before a batch is done


class Delaying:
    """Fake launcher that, like a GPU, keeps one batch in flight and computes its samples on request."""

    depth = 1
    has_first_lane = False
    has_graphs = False
    batch_s = math.inf
    fills_spare_time = True

    def __init__(self, codec: FakeCodec) -> None:
        self._codec = codec
        self.fails = False

    def enter(self) -> None:
        """Do nothing, because there is nothing to prepare."""

    def initial_state(self) -> Tensor:
        return self._codec.initial_state(1)

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
        pcm, after = self._codec.decode(stack(windows, states))

        def collect() -> np.ndarray:
            if self.fails:
                raise RuntimeError("an illegal memory access was encountered")
            return pcm.numpy()

        looks = itertools.count()
        return Flight(own_states(after), collect, is_done=lambda: next(looks) >= NUM_LOOKS)


@pytest.fixture
def delaying(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> Delaying:
    launcher = Delaying(codec)
    monkeypatch.setattr("stretto.decoder.worker.make_launcher", lambda codec, config: launcher)
    return launcher


def test_batches_in_flight_keep_samples_in_order(delaying: Delaying, worker: DecoderWorker, codec: FakeCodec) -> None:
    plug = pile_up(worker, codec)
    log: list[RecordedReply] = []
    codes = np.random.default_rng(1).integers(0, 7, (2, 20))
    replies = {
        name: [push(worker, name, i, part, False, log) for i, part in enumerate(np.split(codes, 5, axis=1))]
        for name in "abc"
    }
    for name in "abc":
        replies[name].append(push(worker, name, 5, None, True, log))
    codec.gate.set()
    plug.wait()
    for name in "abc":
        assert all(reply.wait().error is None for reply in replies[name])
        assert np.allclose(joined(replies[name]), expected_pcm(codes), atol=1e-5)
        assert [reply.name[1] for reply in log if reply.name[0] == name] == list(range(6))


def test_a_late_device_error_fails_its_batch(delaying: Delaying, worker: DecoderWorker, codec: FakeCodec) -> None:
    pile_up(worker, codec)
    replies = [push(worker, name, 0, frames(1, 2, 3)) for name in "ab"]
    delaying.fails = True
    codec.gate.set()
    assert all(isinstance(reply.wait().error, RuntimeError) for reply in replies)
    assert worker.stats()["open_utterances"] == 0


def test_output_format_is_set_by_the_first_chunk(worker: DecoderWorker, codec: FakeCodec) -> None:
    form = OutputForm("pcm_s16le", 4_000)
    codes, replies = np.zeros((2, 50), dtype=np.int32), []
    for i, part in enumerate(np.split(codes, 5, axis=1)):
        replies.append(RecordedReply())
        worker.push("u", Chunk(i, Segment.AUDIO, is_final=i == 4), part, replies[-1], form)
    pcm = joined(replies)
    assert (pcm.dtype, len(pcm)) == (np.int16, 50 * 4 * 40)
    end_s = 0.0
    for reply in replies:
        assert reply.event["start_s"] == pytest.approx(end_s)
        end_s += reply.event["duration_s"]
        assert reply.event["sample_rate"] == 4_000
    assert end_s == replies[-1].event["report"]["audio_s"] == 2.0


def test_session_memory_is_constant_over_ten_minutes(worker: DecoderWorker) -> None:
    sizes = []
    for i in range(1_200):
        push(worker, "u", i, np.zeros((2, 25), dtype=np.int32)).wait()
        sizes.append(worker.stats()["session_bytes"])
    assert max(sizes) == sizes[20]
    spec = FakeCodec.spec
    assert max(sizes) == 8 * (spec.num_codebooks * (spec.left_frames + spec.right_frames) + 1)


def test_decoding_time_counts_frames_and_their_context(codec: FakeCodec) -> None:
    worker, num_context = DecoderWorker(codec, DecoderConfig()), codec.spec.left_frames + codec.spec.right_frames
    worker._loop.clock = itertools.count().__next__  # a batch takes a second
    push(worker, "text", 0, None).wait()
    push(worker, "a", 0, frames(1, 2, 3)).wait()
    assert worker.time == DecodingTime(0.0, num_context / 3, 1 / 3)
    worker.stop()


def test_first_chunks_come_before_those_of_clients_with_audio(codec: FakeCodec) -> None:
    """A frame takes 6 ms, and a batch about 100 ms: 4 windows of 5 frames, with their context, or 3 of 6."""
    worker, log = DecoderWorker(codec, DecoderConfig(), clock=lambda: 0.0), list[RecordedReply]()
    worker._loop.clock = lambda: 0.006 * sum(size * sum(window) for size, *window in codec.batches)
    for index in range(16):
        push(worker, f"old {index}", 0, frames(1, 2, 3, 4, 5)).wait()
    pile_up(worker, codec)
    replies = [push(worker, f"old {index}", 1, frames(1, 2, 3, 4), log=log) for index in range(16)]
    replies += [push(worker, f"new {index}", 0, frames(1, 2, 3, 4, 5), log=log) for index in range(16)]
    codec.gate.set()
    for reply in replies:
        reply.wait()
    assert [reply.name[0].split()[0] for reply in log] == ["new"] * 16 + ["old"] * 16
    assert codec.batches[-10:] == [(4, 0, 4, 1)] * 4 + [(3, 1, 4, 1)] * 5 + [(1, 1, 4, 1)]
    worker.stop()


def test_chunk_is_wanted_from_the_last_launch_before_its_client_runs_dry(codec: FakeCodec) -> None:
    """A client plays four frames for 0.16 s."""
    now, wanted = 1.0, list[float]()
    worker = DecoderWorker(codec, DecoderConfig(), clock=lambda: now)
    chunks = [(1.0, "a", 0), (1.05, "b", 0), (1.06, "a", 1), (1.07, "b", 1), (9.0, "b", 2), (9.1, "a", 2)]
    for at, name, index in chunks:
        now = at
        codes = frames(1, 2, 3, 4) if index else frames(1, 2, 3, 4, 5)
        wanted.append(push(worker, name, index, codes).wait().wanted_s)
    assert wanted == pytest.approx([0.0, 0.0, 1.05, 1.06, 1.07, 1.32])
    worker.stop()
