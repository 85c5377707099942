"""Audio streams that are encoded frame by frame, in batches of several recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MAX_FRAMES = 64  # per call; bounds memory use


class FrameEncoder(Protocol):
    """Encoder with a fixed-size state per recording.

    Encoding a recording in parts of whole frames gives the same codes as encoding it in one pass.
    """

    samples_per_frame: int
    num_codebooks: int

    def initial_state(self, batch: int) -> Tensor:
        """Return the states of `batch` recordings before their first frames, float [batch, D]."""
        ...

    def encode(self, pcm: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """Encode the next n frames of B recordings to codes, int64 [B, K, n].

        Args:
            pcm: Samples of these frames, float [B, n * samples_per_frame].
            first: Number of frames already encoded, int64 [B].
            state: States, [B, D], updated in place.
        """
        ...


@dataclass
class EncodedStream:
    """One recording: samples that are not encoded yet, the encoder state, and codes."""

    encoder: FrameEncoder
    num_frames: int = 0
    _waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    _codes: list[np.ndarray] = field(default_factory=list)
    state: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.encoder.initial_state(1)

    def push(self, pcm: np.ndarray) -> None:
        """Append any number of samples, float32 [n]."""
        self._waiting = np.concatenate([self._waiting, pcm])

    def complete_frame(self) -> None:
        """Append silence until the last frame is complete."""
        self.push(np.zeros(-len(self._waiting) % self.encoder.samples_per_frame, np.float32))

    @property
    def num_ready(self) -> int:
        """Number of complete frames that are not encoded yet."""
        return len(self._waiting) // self.encoder.samples_per_frame

    def pop_samples(self, num_frames: int) -> np.ndarray:
        """Remove and return the samples of the next frames, float32 [num_frames * samples_per_frame]."""
        size = num_frames * self.encoder.samples_per_frame
        samples = self._waiting[:size]
        self._waiting = self._waiting[size:]
        return samples

    def keep(self, codes: np.ndarray, state: Tensor) -> None:
        """Append codes, int64 [K, n], and store the state [1, D] that follows them."""
        self._codes.append(codes)
        self.state = state
        self.num_frames = self.num_frames + codes.shape[1]

    def pop_codes(self) -> np.ndarray:
        """Remove and return the codes of all frames encoded since the last call, int64 [K, n]."""
        codes = self._codes
        self._codes = []
        return np.concatenate([np.zeros((self.encoder.num_codebooks, 0), np.int64), *codes], 1)


def encode_ready(encoder: FrameEncoder, streams: Sequence[EncodedStream], max_batch: int = 16) -> None:
    """Encode all complete frames of `streams`, in batches of frames of several recordings."""
    while any(stream.num_ready for stream in streams):
        encode_round(encoder, streams, max_batch)


def encode_round(
    encoder: FrameEncoder, streams: Sequence[EncodedStream], max_batch: int = 16, max_frames: int = MAX_FRAMES
) -> None:
    """Encode one or more frames, at most `max_frames`, of every stream that has a complete frame."""
    ready = sorted((stream for stream in streams if stream.num_ready), key=lambda stream: stream.num_ready)
    for begin in range(0, len(ready), max_batch):
        batch = ready[begin : begin + max_batch]
        num_frames = min(batch[0].num_ready, max_frames)
        pcm = np.stack([stream.pop_samples(num_frames) for stream in batch])
        first = torch.tensor([stream.num_frames for stream in batch])
        state = torch.cat([stream.state for stream in batch])
        like = state.device, state.dtype
        codes = encoder.encode(torch.from_numpy(pcm).to(*like), first.to(state.device), state).cpu().numpy()
        for stream, own_codes, own_state in zip(batch, codes, state.split(1), strict=True):
            stream.keep(own_codes, own_state.clone())
