"""Streaming encoder of Mimi: frames of several recordings as one batch, equal to encoding each recording at once.

pcm ─► SEANet encoder ─► transformer ─► downsample ×2 ─► residual codebooks ─► codes
       last inputs of    keys and        last steps
       each convolution  values          (the first one repeated at first)

All of it is causal, and a frame makes two steps, so a bounded state is exact. The authors' own stream is not: its ring
lacks a key in the first step of each frame once the transformer's window is full.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.mimi.modeling_mimi import MimiConv1d

from stretto.codecs.mimi import STEPS, MimiCodec, RingTransformer

MAX_FRAMES = 64  # per call; bounds the memory of a call


@dataclass
class _Paddings:
    """Left contexts of the convolutions, in the place of transformers' cache: views of the state, updated in place.

    Attributes:
        contexts: Last inputs of each convolution, [B, C, left] each; left may be 0.
        is_first: True for recordings that begin, bool [B, 1, 1].
        repeated: Index of the convolution whose context is its first input at the beginning.
    """

    contexts: list[Tensor]
    is_first: Tensor
    repeated: int

    def update(self, hidden: Tensor, layer_idx: int) -> Tensor:
        """Return a convolution's context [B, C, left], and store the last of `hidden` [B, C, n] for the next call."""
        context = self.contexts[layer_idx]
        before = context.clone()
        if layer_idx == self.repeated:
            before = torch.where(self.is_first, hidden[..., :1], before)
        context.copy_(torch.cat([before, hidden], 2)[..., hidden.shape[2] :])
        return before


class MimiEncoder:
    """Encoder with a state per recording, which the caller owns.

    Attributes:
        samples_per_frame: Samples per frame.
        num_codebooks: K, the number of codebooks.
        state_size: D, the size of a recording's state.
    """

    def __init__(self, codec: MimiCodec) -> None:
        model = codec.model
        self._model, self._device = model, next(codec.parameters()).device
        self.samples_per_frame, self.num_codebooks = codec.spec.samples_per_frame, codec.spec.num_codebooks
        self._transformer = RingTransformer(model.encoder_transformer)
        assert model.downsample is not None, "there are two steps a frame"
        found = [each for each in model.encoder.modules() if isinstance(each, MimiConv1d)]
        convolutions = sorted([*found, model.downsample], key=_index)
        assert [_index(each) for each in convolutions] == list(range(len(convolutions)))
        self._shapes = [(each.in_channels, _left(each.conv)) for each in convolutions]
        self._sizes = [prod(shape) for shape in self._shapes]
        self._ring_size = prod(self._transformer.shape)
        self.state_size = self._ring_size + sum(self._sizes)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, float [batch, D]: silence before each recording, and empty rings."""
        return next(self._model.parameters()).new_zeros(batch, self.state_size)

    @torch.inference_mode()
    def encode(self, pcm: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """Encode the next frames of B recordings.

        Args:
            pcm: Samples of n whole frames, float [B, n * samples_per_frame].
            first: Number of frames encoded before, int64 [B].
            state: States, [B, D], updated in place.

        Returns:
            Codes, int64 [B, K, n].
        """
        rings, *contexts = state.split([self._ring_size, *self._sizes], 1)
        views = [each.unflatten(1, shape) for each, shape in zip(contexts, self._shapes, strict=True)]
        paddings = _Paddings(views, (first == 0)[:, None, None], len(views) - 1)
        steps = self._model.encoder(pcm[:, None], padding_cache=paddings).transpose(1, 2)
        steps = self._transformer.advance(steps, first * STEPS, rings.unflatten(1, self._transformer.shape))
        assert self._model.downsample is not None
        frames = self._model.downsample(steps.transpose(1, 2), padding_cache=paddings)
        return self._model.quantizer.encode(frames, self.num_codebooks).transpose(0, 1)

    def encode_all(self, pcm: np.ndarray) -> np.ndarray:
        """Return the codes, int64 [K, T], of mono samples, float32 [n]; silence completes the last frame."""
        stream = EncodedStream(self)
        stream.push(pcm)
        stream.push(np.zeros(-len(pcm) % self.samples_per_frame, np.float32))
        encode_ready(self, [stream])
        return stream.pop_codes()


def _index(convolution: MimiConv1d) -> int:
    assert convolution.layer_idx is not None
    return convolution.layer_idx


def _left(convolution: nn.Conv1d) -> int:
    (kernel,), (stride,), (dilation,) = convolution.kernel_size, convolution.stride, convolution.dilation
    return (kernel - 1) * dilation + 1 - stride


@dataclass
class EncodedStream:
    """One recording: samples that wait for the end of their frame, state, and codes.

    Attributes:
        num_frames: Number of frames encoded so far.
    """

    encoder: MimiEncoder
    num_frames: int = 0
    _waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    _codes: list[np.ndarray] = field(default_factory=list)
    state: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.encoder.initial_state(1)

    def push(self, pcm: np.ndarray) -> None:
        """Append samples, float32 [n], of any number."""
        self._waiting = np.concatenate([self._waiting, pcm])

    @property
    def num_ready(self) -> int:
        """Number of complete frames that are not encoded yet."""
        return len(self._waiting) // self.encoder.samples_per_frame

    def pop_samples(self, num_frames: int) -> np.ndarray:
        """Remove and return the samples of the next frames, float32 [num_frames * samples_per_frame]."""
        size = num_frames * self.encoder.samples_per_frame
        samples, self._waiting = self._waiting[:size], self._waiting[size:]
        return samples

    def keep(self, codes: np.ndarray, state: Tensor) -> None:
        """Append codes, int64 [K, n], with the state [1, D] after them."""
        self._codes.append(codes)
        self.state, self.num_frames = state, self.num_frames + codes.shape[1]

    def pop_codes(self) -> np.ndarray:
        """Remove and return the codes of all frames encoded since the last call, int64 [K, n]."""
        codes, self._codes = self._codes, []
        return np.concatenate([np.zeros((self.encoder.num_codebooks, 0), np.int64), *codes], 1)


def encode_ready(encoder: MimiEncoder, streams: Sequence[EncodedStream], max_batch: int = 16) -> None:
    """Encode all complete frames of `streams`, those of several recordings as one batch.

    Args:
        encoder: Encoder of all streams.
        streams: The recordings, at any position.
        max_batch: Maximum number of recordings in a batch.
    """
    while ready := sorted((each for each in streams if each.num_ready), key=lambda each: each.num_ready):
        batch = ready[:max_batch]
        num_frames = min(batch[0].num_ready, MAX_FRAMES)
        pcm = np.stack([each.pop_samples(num_frames) for each in batch])
        first = torch.tensor([each.num_frames for each in batch])
        state = torch.cat([each.state for each in batch])
        like = state.device, state.dtype
        codes = encoder.encode(torch.from_numpy(pcm).to(*like), first.to(state.device), state).cpu().numpy()
        for own, own_codes, own_state in zip(batch, codes, state.split(1), strict=True):
            own.keep(own_codes, own_state.clone())
