"""Graphs give the codec's output; in these tests, a graph runs the step again into the same memory."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stretto.codecs.base import Window
from stretto.decoder.launching import WORTH_CAPTURING, CudaGraphs, GraphCache
from tests.decoder import fake_cuda
from tests.fakes import FakeCodec


class Recorder:
    """Fake recorder that captures any work and counts captures and replays."""

    def __init__(self, fails: bool = False) -> None:
        self.num_captured = self.num_replayed = 0
        self.fails = fails

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Callable[[], None]]:
        self.num_captured += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = step()

        def replay() -> None:
            self.num_replayed += 1
            for held, new in zip(outputs, step(), strict=True):
                held.copy_(new)

        return outputs, replay


def window(batch: int, frames: int = 4, seed: int = 0) -> Window:
    torch.manual_seed(seed)
    codes = torch.randint(8, (batch, 2, 1 + frames + 1))
    return Window(codes, 1, 1, torch.arange(batch), torch.rand(batch, 1, dtype=torch.float64))


def check(cache: GraphCache, each: Window) -> None:
    pcm, states = cache.decode(each)
    expected_pcm, expected_states = FakeCodec().decode(each)
    assert torch.equal(pcm, expected_pcm)
    assert torch.equal(states, expected_states)


def test_frequent_shape_is_captured_and_decodes_identically() -> None:
    backend = Recorder()
    cache = GraphCache(FakeCodec().decode, backend)
    for seed in range(WORTH_CAPTURING + 3):
        check(cache, window(3, seed=seed))
    assert (backend.num_captured, backend.num_replayed, cache.num_graphs) == (1, 4, 1)


def test_batches_share_a_graph_up_to_the_next_power_of_two() -> None:
    backend = Recorder()
    cache = GraphCache(FakeCodec().decode, backend)
    for seed in range(30):
        check(cache, window((5, 8, 6, 7)[seed % 4], seed=seed))
        check(cache, window(1 + seed % 2, frames=2, seed=seed))
    assert backend.num_captured == 3  # graphs of 8 rows, of 1 and of 2


def test_batch_states_survive_the_next_batch() -> None:
    cache = GraphCache(FakeCodec().decode, Recorder())
    for seed in range(WORTH_CAPTURING):
        _, states = cache.decode(window(2, seed=seed))
    before = states.clone()
    cache.decode(window(2, seed=99))
    assert torch.equal(states, before)


def test_uncapturable_codec_runs_eagerly_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Recorder(fails=True)
    cache = GraphCache(FakeCodec().decode, backend)
    with caplog.at_level(logging.WARNING):
        for frames in (4, 5):
            for seed in range(WORTH_CAPTURING + 5):
                check(cache, window(3, frames, seed=seed))
    assert (backend.num_captured, cache.num_graphs) == (1, 0)
    assert len(caplog.records) == 1


def test_failed_capture_discards_earlier_graphs() -> None:
    """They share memory with the failed one."""
    backend = Recorder()
    cache = GraphCache(FakeCodec().decode, backend)
    for seed in range(WORTH_CAPTURING + 2):
        check(cache, window(3, seed=seed))
    backend.fails, num_replayed = True, backend.num_replayed
    for seed in range(WORTH_CAPTURING):
        check(cache, window(3, frames=5, seed=seed))
    check(cache, window(3))
    assert (cache.num_graphs, backend.num_replayed) == (0, num_replayed)


@pytest.mark.parametrize("fails", ["while it is captured", "when the capture ends"])
def test_a_failed_capture_restores_the_stream(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    before = cuda.current
    error = RuntimeError("operation not permitted when stream is capturing")
    cuda.refuses = error
    places: list[str] = []

    def step() -> tuple[Tensor, Tensor]:
        places.append(cuda.current.name)
        if cuda.current is not before and fails == "while it is captured":
            raise error
        return torch.zeros(1), torch.zeros(1)

    backend = CudaGraphs()
    with pytest.raises(RuntimeError, match="not permitted"):
        backend.capture(step)
    assert places == ["default"] * 3 + ["capture"]
    assert cuda.current is before
    assert cuda.num_synchronized == 2  # before the capture, and after it has failed
    assert not cuda.pools_in_use


def test_number_of_captured_graphs_is_limited() -> None:
    backend = Recorder()
    cache = GraphCache(FakeCodec().decode, backend, max_graphs=2)
    for frames in (3, 4, 5, 6):
        for _ in range(WORTH_CAPTURING + 1):
            check(cache, window(2, frames=frames))
    assert backend.num_captured == 2
