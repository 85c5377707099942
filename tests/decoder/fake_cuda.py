"""Fake `torch.cuda` on the CPU for the decoder: streams in simulated time, events, and graphs that can fail.

Work takes no time by itself: `FakeCuda.work` sets how long later work keeps the device busy on the current stream.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

LOOK_S = 0.02


class FakeStream:
    """Fake stream that runs work in order. `free_s` is the time when the device has finished it."""

    def __init__(self, name: str = "side", priority: int = 0) -> None:
        self.name = name
        self.priority = priority
        self.free_s = 0.0


class FakeEvent:
    """Time at which a stream reaches a point in its work."""

    def __init__(self, cuda: "FakeCuda") -> None:
        self._cuda = cuda
        self.stream: FakeStream | None = None
        self.at_s = 0.0

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = stream or self._cuda.current
        self.at_s = max(self.stream.free_s, self._cuda.now_s)

    def synchronize(self) -> None:
        self._cuda.now_s = max(self._cuda.now_s, self.at_s)

    def query(self) -> bool:
        """Return True if the event has happened; each look takes simulated time."""
        has_happened = self._cuda.now_s >= self.at_s
        self._cuda.now_s += LOOK_S
        return has_happened

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self._cuda.now_s >= end.at_s, "an event that has not happened yet has no time"
        return 1e3 * (end.at_s - self.at_s)


class FakeGraph:
    """Fake graph that counts replays; tensors keep their values from the capture."""

    def __init__(self, cuda: "FakeCuda") -> None:
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.num_replayed += 1


class FakeCuda:
    """Fake device with its host. `refuses` is the operation that ends a capture, as a copy from the host does."""

    def __init__(self) -> None:
        self.default = self.current = FakeStream("default")
        self.now_s = 0.0
        self.events: list[FakeEvent] = []
        self.num_synchronized = self.num_captured = self.num_replayed = 0
        self.refuses: Exception | None = None
        self.pools_in_use: set[tuple[int, ...]] = set()

    def work(self, seconds: float) -> None:
        """Keep the device busy on the current stream."""
        self.current.free_s = max(self.current.free_s, self.now_s) + seconds

    def event(self, enable_timing: bool = False, blocking: bool = False) -> FakeEvent:
        assert blocking, "the host would spin while it waits"
        self.events.append(FakeEvent(self))
        return self.events[-1]

    def set_stream(self, stream: FakeStream) -> None:
        self.current = stream

    def synchronize(self, device: object = None) -> None:
        self.num_synchronized += 1

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(
        self, graph: FakeGraph, pool: tuple[int, ...], stream: FakeStream | None = None, **options: Any
    ) -> Iterator[None]:
        """Capture a graph as torch does.

        If the capture cannot be ended, its stream stays the current one and the allocator keeps allocating for it.
        """
        before, self.current = self.current, stream or FakeStream("capture")
        self.pools_in_use.add(pool)
        yield
        if self.refuses is not None:
            raise self.refuses
        self.end_allocating(0, pool)
        self.current = before
        self.num_captured += 1

    def end_allocating(self, device: int, pool: tuple[int, ...]) -> None:
        """Raise the error of torch's allocator if no such pool is in use."""
        if pool not in self.pools_in_use:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools_in_use.remove(pool)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Install this fake as `torch.cuda`, and replace pinned memory with normal memory."""
    cuda = FakeCuda()
    replaced: dict[str, Callable[..., Any]] = {
        "Stream": lambda device=None, priority=0: FakeStream(priority=priority),
        "Event": cuda.event,
        "CUDAGraph": lambda: FakeGraph(cuda),
        "graph": cuda.graph,
        "graph_pool_handle": tuple,
        "current_stream": lambda device=None: cuda.current,
        "set_stream": cuda.set_stream,
        "stream": cuda.stream,
        "synchronize": cuda.synchronize,
        "current_device": lambda: 0,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocating, raising=False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
    return cuda
