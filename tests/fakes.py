"""Fakes that are small enough to check by eye."""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import CodecSpec, Stateful, Window, Windowed
from tests.patience import PATIENCE_S


class FakeCodec:
    """Codec that turns a frame into 4 equal samples, which depend on everything that a codec may depend on:

    code 0 of the frame, a tenth of its left neighbour, a hundredth of its right one, and (the state) a thousandth of
    all code 0 up to the frame. A window whose code 0 holds `poison` raises ValueError.
    """

    spec = CodecSpec("fake", 100, 4, num_codebooks=2, codebook_size=8, streaming=Stateful(left=1, right=1))

    def __init__(self, poison: int | None = None) -> None:
        self.poison = poison
        self.batches: list[tuple[int, int, int, int]] = []  # size, left, frames, right
        self.gate = threading.Event()  # a test closes it to let chunks pile up
        self.gate.set()

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, dtype=torch.float64)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        assert self.gate.wait(PATIENCE_S)
        size, _, length = window.codes.shape
        last = length - window.right
        self.batches.append((size, window.left, last - window.left, window.right))
        code = window.codes[:, 0].double()
        if self.poison is not None and bool((code[:, window.left : last] == self.poison).any()):
            raise ValueError("poisoned")
        before = torch.nn.functional.pad(code, (1, 0))[:, :-1]
        after = torch.nn.functional.pad(code, (0, 1))[:, 1:]
        total = window.state + code[:, window.left : last].cumsum(1)
        value = (code + before / 10 + after / 100)[:, window.left : last] + total / 1000
        return value.repeat_interleave(self.spec.samples_per_frame, dim=1).float(), total[:, -1:]


class FrameCounter:
    """Codec whose codes are the frame number, modulo the codebook size, in every codebook; it cannot decode."""

    def __init__(
        self, samples_per_frame: int = 640, num_codebooks: int = 7, codebook_size: int = 256, sample_rate: int = 16_000
    ) -> None:
        self.spec = CodecSpec("counter", sample_rate, samples_per_frame, num_codebooks, codebook_size, Windowed(0, 0))

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        assert pcm.dtype == np.float32
        numbers = np.arange(len(pcm) // self.spec.samples_per_frame) % self.spec.codebook_size
        return np.tile(numbers, (self.spec.num_codebooks, 1))

    def initial_state(self, batch: int) -> Tensor:
        raise NotImplementedError

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class RecordedReply:
    """Reply that records its only answer: `pcm` and `event`, or `error`."""

    def __init__(self, log: list["RecordedReply"] | None = None, name: Any = None) -> None:
        self.name, self.host, self.wanted_s = name, "", 0.0
        self.pcm: np.ndarray | None = None
        self.event: dict[str, Any] | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self._log = log
        self._answered = threading.Event()

    def send(self, pcm: np.ndarray | None, event: dict[str, Any]) -> None:
        self.pcm, self.event = pcm, event
        self._done()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._done()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self, timeout_s: float = PATIENCE_S) -> "RecordedReply":
        assert self._answered.wait(timeout_s), f"no answer to {self.name}"
        return self

    def _done(self) -> None:
        assert not self._answered.is_set(), f"{self.name} was answered twice"
        if self._log is not None:
            self._log.append(self)
        self._answered.set()
