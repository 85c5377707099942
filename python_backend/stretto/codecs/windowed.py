"""Codecs without state: calculation of receptive fields, and decoding of windows with context."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.dac.modeling_dac import Snake1d

from stretto.codecs.base import CodecSpec, Window
from stretto.codecs.convolution import Snake
from stretto.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution that keeps the length: output j reads inputs j - before … j - before + dilation * (kernel - 1)."""

    kernel: int
    before: int  # zeros padded at the start
    dilation: int = 1

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last input that the outputs `first` to `last` depend on."""
        return first - self.before, last - self.before + self.dilation * (self.kernel - 1)

    def length(self, length: int) -> int:
        """Return the number of outputs for `length` inputs."""
        return length


@dataclass(frozen=True, slots=True)
class Upsample:
    """Transposed convolution: input i contributes to outputs i * stride - before … i * stride - before + kernel - 1.

    Attributes:
        before: Number of outputs cut off at the start (torch's `padding`).
        after: Number of outputs cut off at the end (`padding - output_padding`).
    """

    kernel: int
    stride: int
    before: int
    after: int

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last input that the outputs `first` to `last` depend on."""
        return ceil((first + self.before - self.kernel + 1) / self.stride), (last + self.before) // self.stride

    def length(self, length: int) -> int:
        """Return the number of outputs for `length` inputs."""
        return (length - 1) * self.stride + self.kernel - self.before - self.after


Layer = Conv | Upsample


def same(kernel: int, dilation: int = 1) -> Conv:
    """Return a length-preserving convolution with equal look-ahead and look-back."""
    return Conv(kernel, dilation * (kernel - 1) // 2, dilation)


def dac_layers(upsampling_ratios: Iterable[int], output_padding: bool) -> list[Layer]:
    """Return the layers of transformers' DacDecoder: per block an upsampling and residual units of dilation 1, 3, 9.

    Args:
        upsampling_ratios: Strides of the blocks, in order.
        output_padding: True if transposed convolutions of odd stride use output padding, so that each frame yields
            `stride` samples, as in the decoders of X-codec and Higgs Audio.
    """
    layers: list[Layer] = [same(7)]
    for stride in upsampling_ratios:
        before = ceil(stride / 2)
        after = before - (stride % 2 if output_padding else 0)
        layers += [Upsample(2 * stride, stride, before, after), same(7, 1), same(7, 3), same(7, 9)]
    return [*layers, same(7)]


def samples_per_frame(layers: Sequence[Layer]) -> int:
    """Return the number of samples per frame, the product of the strides."""
    return prod(layer.stride for layer in layers if isinstance(layer, Upsample))


def reach(layers: Sequence[Layer], first: int, last: int) -> tuple[int, int]:
    """Return the first and the last frame that the samples `first` to `last` depend on."""
    for layer in reversed(layers):
        first, last = layer.reach(first, last)
    return first, last


def context(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return the number of frames before and the number of frames after a frame that its samples depend on."""
    first, last = reach(layers, 0, samples_per_frame(layers) - 1)
    return -first, last


def tail_samples(layers: Sequence[Layer]) -> int:
    """Return the number of samples by which the last frame is shorter than the others."""
    frames = 1 + sum(context(layers))
    length = frames
    for layer in layers:
        length = layer.length(length)
    return frames * samples_per_frame(layers) - length


class DacSnake(Snake):
    """Snake activation of transformers' DAC, with its weight [1, C, 1]."""

    def __init__(self, alpha: nn.Parameter) -> None:
        super().__init__()
        self.alpha = alpha

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return a and 1 / a."""
        alpha = self.alpha.flatten()
        return alpha, 1 / (alpha + 1e-9)


def share_snake(decoder: nn.Module) -> None:
    """Replace the Snake activations of transformers' DacDecoder, which allocate a tensor for each operation."""
    for owner in decoder.modules():
        for name, layer in owner.named_children():
            if isinstance(layer, Snake1d):
                setattr(owner, name, DacSnake(layer.alpha))


class WindowedCodec(nn.Module):
    """Base class of convolutional codecs.

    Subclasses define `forward` and, if the checkpoint has an encoder, `codes_of`.
    """

    def __init__(self, spec: CodecSpec, can_encode: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.can_encode = can_encode

    def forward(self, codes: Tensor) -> Tensor:
        """Return the waveform [B, n] of whole utterances, codes [B, K, T]; n is spec.num_samples(T, right=0)."""
        raise NotImplementedError

    def codes_of(self, pcm: Tensor) -> Tensor:
        """Return the codes [B, K, T] of pcm [B, n], padded by `fit`."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def initial_state(self, batch: int) -> Tensor:
        """Return an empty state, [batch, 0]."""
        return torch.zeros(batch, 0, device=self.device)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode a window, see `base.Codec.decode`."""
        frames = window.codes.shape[2] - window.left - window.right
        start = window.left * self.spec.samples_per_frame
        pcm = self(window.codes.to(self.device))[:, start : start + self.spec.num_samples(frames, window.right)]
        return pcm.clamp(-1, 1), window.state

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording, see `base.Codec.encode`; raise InvalidRequest if the checkpoint has no encoder."""
        if not self.can_encode:
            raise InvalidRequest("audio", f"no audio (this checkpoint of {self.spec.name} can only decode)", "audio")
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(pcm).to(self.device, next(self.parameters()).dtype)
        return self.codes_of(self.fit(samples)[None])[0, : self.spec.num_codebooks].cpu().numpy()

    def fit(self, samples: Tensor) -> Tensor:
        """Return samples [n] padded with silence to whole frames, as by transformers' `DacFeatureExtractor`."""
        return F.pad(samples, (0, -len(samples) % self.spec.samples_per_frame))
