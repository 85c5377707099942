"""Graphs give the codec's output; in these tests, a graph runs the step again into the same memory."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stretto.codecs.base import Window
from stretto.decoding.graphs import MAX_BATCH_S, CudaGraphs, GraphCache, batch_limit, padded_batch
from stretto.decoding.states import NUM_RESERVED, UNUSED, decode_in_rows, row_numbers
from tests.decoder import fake_cuda
from tests.fakes import FakeCodec


class Recorder:
    """Fake recorder that captures any work and counts captures and replays. `error` ends a capture."""

    def __init__(self, error: Exception | None = None) -> None:
        self.num_captured = self.num_replayed = self.num_released = 0
        self.error = error
        self.memory_error: Exception | None = None  # raised before a capture

    def prepare(self, step: Callable[[], None]) -> None:
        if self.memory_error is not None:
            raise self.memory_error
        step()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        if self.error is not None:
            raise self.error
        step()

        def replay() -> None:
            self.num_replayed += 1
            step()

        return replay

    def release(self) -> None:
        self.num_released += 1


REFUSED = RuntimeError("operation not permitted when stream is capturing")


def make_cache(backend: Recorder) -> GraphCache:
    return GraphCache(decode_in_rows(FakeCodec()), backend, FakeCodec.spec, 8)


TABLE = torch.zeros(32, 1, dtype=torch.float64)  # of the states of all windows


def window(batch: int, frames: int = 4, seed: int = 0) -> Window:
    torch.manual_seed(seed)
    codes = torch.randint(8, (batch, 2, 1 + frames + 1))
    TABLE[NUM_RESERVED:] = torch.rand(len(TABLE) - NUM_RESERVED, 1, dtype=torch.float64)
    numbers = NUM_RESERVED + torch.randperm(len(TABLE) - NUM_RESERVED)[: 2 * batch].view(2, batch)
    rows = row_numbers([], [], padded_batch(batch))
    rows[:, :batch] = numbers
    return Window(codes, 1, 1, torch.arange(batch), TABLE, rows)


def check(cache: GraphCache, each: Window) -> None:
    before = TABLE.clone()
    assert each.rows is not None
    rows = each.rows[:, : len(each.codes)]
    expected_pcm, states = FakeCodec().decode(replace(each, state=before[rows[0]], rows=None))
    pcm, table = cache.decode(each)
    assert torch.equal(pcm, expected_pcm)
    assert table is TABLE
    assert torch.equal(table[rows[1]], states)
    others = [row for row in range(len(table)) if row not in (UNUSED, *rows[1].tolist())]
    assert torch.equal(table[others], before[others]), "windows without an utterance change no state"


def test_captured_shape_is_replayed_and_decodes_identically() -> None:
    backend = Recorder()
    cache = make_cache(backend)
    assert cache.capture(window(3))
    for seed in range(4):
        check(cache, window(3, seed=seed))
    assert (backend.num_captured, backend.num_replayed, cache.num_graphs) == (1, 4, 1)


def test_nothing_is_captured_while_windows_are_decoded() -> None:
    """A capture stops all streams for 0.1 s."""
    backend = Recorder()
    cache = make_cache(backend)
    for seed in range(30):
        check(cache, window(3, seed=seed))
    assert (backend.num_captured, backend.num_replayed) == (0, 0)


def test_batches_share_a_graph_up_to_the_next_power_of_two() -> None:
    backend = Recorder()
    cache = make_cache(backend)
    for batch in (8, 5, 7):
        assert cache.capture(window(batch))
    for batch in (2, 1):
        assert cache.capture(window(batch, frames=2))
    assert backend.num_captured == 3  # graphs of 8 rows, of 1 and of 2
    for seed in range(30):
        check(cache, window((5, 8, 6, 7)[seed % 4], seed=seed))
        check(cache, window(1 + seed % 2, frames=2, seed=seed))
    assert backend.num_replayed == 60


def test_graphs_share_the_table_and_memory_for_samples() -> None:
    """Each would otherwise hold the states of a whole batch twice: 16 GB for all shapes of Mimi."""
    cache = make_cache(Recorder())
    windows = [window(batch, frames) for batch in (8, 4, 1) for frames in (1, 2, 4)]
    for each in windows:
        assert cache.capture(each)
    found = [captured for _, captured in cache._graphs.items()]
    assert len(found) == len(windows)
    assert len({each.pcm.untyped_storage().data_ptr() for each in found}) == 1
    assert all(each.window.state is TABLE for each in found)
    for each in windows:
        check(cache, each)


def test_lack_of_memory_keeps_earlier_graphs(caplog: pytest.LogCaptureFixture) -> None:
    backend = Recorder()
    cache = make_cache(backend)
    assert cache.capture(window(3))
    backend.memory_error = torch.OutOfMemoryError("CUDA out of memory")
    with caplog.at_level(logging.WARNING):
        assert not cache.capture(window(3, frames=5))
    backend.memory_error = None
    assert not cache.capture(window(3, frames=6)), "capturing has ended"
    check(cache, window(3))
    assert (cache.num_graphs, backend.num_replayed) == (1, 1)
    assert "no memory" in caplog.text


def test_lack_of_memory_for_buffers_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache = make_cache(Recorder())
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_zeros", fail)
        assert not cache.capture(window(3))
    check(cache, window(3))


def test_long_batches_are_neither_captured_nor_composed() -> None:
    spec, cache = FakeCodec.spec, make_cache(Recorder())
    most = int(MAX_BATCH_S * spec.frame_rate)
    assert not cache.capture(window(8, frames=most // 4))
    assert cache.capture(window(1, frames=most - 2))
    assert batch_limit(spec, most + 1, 64) == batch_limit(spec, most, 64) == 1
    assert batch_limit(spec, most // 3, 64) == 2, "a power of two"
    assert batch_limit(spec, 1, 6) == 6


def test_uncapturable_codec_runs_eagerly_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Recorder(REFUSED)
    cache = make_cache(backend)
    with caplog.at_level(logging.WARNING):
        for frames in (4, 5):
            assert not cache.capture(window(3, frames))
            check(cache, window(3, frames))
    assert (backend.num_captured, cache.num_graphs) == (1, 0)
    assert len(caplog.records) == 1


def test_failed_capture_discards_earlier_graphs() -> None:
    """They share memory with the failed one."""
    backend = Recorder()
    cache = make_cache(backend)
    assert cache.capture(window(3))
    backend.error = REFUSED
    assert not cache.capture(window(3, frames=5))
    check(cache, window(3))
    assert (cache.num_graphs, backend.num_replayed) == (0, 0)


@pytest.mark.parametrize("fails", ["while it is captured", "when the capture ends"])
def test_a_failed_capture_restores_the_stream(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    before = cuda.current
    error = RuntimeError("operation not permitted when stream is capturing")
    cuda.refuses = error
    places: list[str] = []

    def step() -> None:
        places.append(cuda.current.name)
        if cuda.current is not before and fails == "while it is captured":
            raise error

    backend = CudaGraphs(fake_cuda.FakeStream("capture"))
    backend.prepare(step)
    with pytest.raises(RuntimeError, match="not permitted"):
        backend.capture(step)
    assert places == ["default"] * 3 + ["capture"]
    assert cuda.current is before
    assert cuda.num_synchronized == 2  # before the capture, and after it has failed
    assert not cuda.pools_in_use


@pytest.mark.parametrize(("num_refused", "num_graphs"), [(1, 1), (2, 0)])
def test_graphs_are_dropped_only_if_unused_memory_is_not_enough(num_refused: int, num_graphs: int) -> None:
    codec, backend = FakeCodec(), Recorder()

    def decode(each: Window) -> tuple[Tensor, Tensor]:
        if each.codes.shape[2] > 6 and backend.num_released < num_refused:
            raise torch.OutOfMemoryError
        return decode_in_rows(codec)(each)

    cache = GraphCache(decode, backend, FakeCodec.spec, 8)
    assert cache.capture(window(2))
    check(cache, window(2, frames=9))
    assert (cache.num_graphs, backend.num_released) == (num_graphs, num_refused)
    check(cache, window(2))
    assert cache.capture(window(2)) == bool(num_graphs)


def test_window_without_memory_fails_if_there_are_no_graphs() -> None:
    def decode(each: Window) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        GraphCache(decode, Recorder(), FakeCodec.spec, 8).decode(window(2))
