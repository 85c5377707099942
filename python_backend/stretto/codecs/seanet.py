"""SEANet decoders: receptive field, exact streaming, and encoder and decoder layers of the ESPnet variant.

The ESPnet encoder and decoder process whole signals: they are non-causal, with reflection padding and Snake
activations. Layers are numbered as in ESPnet's `model` lists, where Snake counts as a layer, so that tensor names match
the published ones.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import Stateful
from stretto.codecs.streaming import sine_


@dataclass(frozen=True, slots=True)
class Context:
    """Number of input frames before (`left`) and after (`right`) that an output frame depends on."""

    left: int
    right: int


@dataclass(frozen=True, slots=True)
class SeanetShape:
    """Sizes that determine a SEANet decoder's receptive field; `ratios` are its upsampling factors in order."""

    ratios: tuple[int, ...]
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    num_residual_layers: int = 1
    dilation_base: int = 2

    @property
    def hop(self) -> int:
        """Number of samples per input frame."""
        return math.prod(self.ratios)

    @property
    def head(self) -> Context:
        """Context of the first convolution."""
        return self._of_convolution(self.kernel, 1)

    @property
    def start(self) -> int:
        """Number of frames that the first convolution needs to pad the start of an utterance by reflection."""
        return self.head.left + 1

    @property
    def tail(self) -> Context:
        """Context of all layers after the LSTM, in input frames, traced back from the samples of frame 0.

        Sample u of a transposed convolution (kernel 2 s, stride s, `trim` samples cut off on the left) depends on the
        inputs j with j s ≤ u + trim ≤ j s + 2 s - 1.
        """
        first, last = self._before(self.last_kernel, 1, 0, self.hop - 1)
        for ratio in reversed(self.ratios):
            for layer in reversed(range(self.num_residual_layers)):
                first, last = self._before(self.residual_kernel, self.dilation_base**layer, first, last)
            trim = ratio - ratio // 2
            first = -((2 * ratio - 1 - first - trim) // ratio)
            last = (last + trim) // ratio
        return Context(left=-first, right=last)

    def _of_convolution(self, kernel: int, dilation: int) -> Context:
        span = (kernel - 1) * dilation
        right = span // 2
        return Context(left=span - right, right=right)

    def _before(self, kernel: int, dilation: int, first: int, last: int) -> tuple[int, int]:
        reach = self._of_convolution(kernel, dilation)
        return first - reach.left, last + reach.right


LENGTHS = ("stride", "kernel_size", "padding_total")


def keep_lengths_on_host(model: nn.Module) -> None:
    """Move convolution sizes that are stored as buffers back to the host, so that padding does not synchronise the GPU.

    Call this after the model has been moved to its device.
    """
    for module in model.modules():
        for name in LENGTHS:
            if name in module._buffers:
                setattr(module, name, module.get_buffer(name).cpu())


@dataclass(frozen=True, slots=True)
class SeanetStream:
    """Streaming SEANet decoder whose state is the LSTM's (h, c).

    `head` and `tail` map [B, C, T] to [B, C', T']. The LSTM between them maps [T, B, C] to the same shape. `shape`
    contains the sizes of the decoder.
    """

    shape: SeanetShape
    head: nn.Module
    lstm: nn.LSTM
    tail: nn.Module

    @property
    def streaming(self) -> Stateful:
        """Streaming mode with the combined context of head and tail."""
        head = self.shape.head
        tail = self.shape.tail
        return Stateful(left=head.left + tail.left, right=head.right + tail.right, start=self.shape.start)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros for (h, c) of every LSTM layer, [batch, 2 * layers * channels]."""
        return next(self.lstm.parameters()).new_zeros(batch, 2 * self.lstm.num_layers * self.lstm.hidden_size)

    def __call__(self, latents: Tensor, left: int, right: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples [B, n] of a window without its context, and the next state.

        Args:
            latents: Latents, [B, C, left + frames + right].
            state: State before the window, [B, D].
        """
        end = latents.shape[2] - right
        start, keep = (max(0, frame - self.shape.tail.left) for frame in (left, end))
        steps = self.head(latents).permute(2, 0, 1)[start : end + self.shape.tail.right]
        before, state = self._recur(steps[: keep - start], state)
        after, _ = self._recur(steps[keep - start :], state)
        hidden = torch.cat([before, after]) + steps
        pcm = self.tail(hidden.permute(1, 2, 0))[:, 0]
        return pcm[:, (left - start) * self.shape.hop : (end - start) * self.shape.hop], state

    def _recur(self, steps: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if len(steps) == 0:
            return steps, state
        hidden, cell = state.unflatten(1, (2, self.lstm.num_layers, -1)).permute(1, 2, 0, 3).contiguous()
        steps, (hidden, cell) = self.lstm(steps, (hidden, cell))
        return steps, torch.stack([hidden, cell]).permute(2, 0, 1, 3).flatten(1).to(state.dtype)


class Snake(nn.Module):
    """Snake activation with a = 1 and no parameters, as in the ESPnet codecs."""

    def forward(self, x: Tensor) -> Tensor:
        return sine_(x.clone()).square_().add_(x)


@dataclass(frozen=True, slots=True)
class SeanetWidths:
    """Numbers of channels: `base` next to the waveform, doubled at every ratio, and `latent` next to the quantiser."""

    base: int
    latent: int
    compress: int = 2  # residual branches are narrower by this factor
    lstm_layers: int = 2


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Return x [B, C, n] padded by reflection; silence is appended first if the signal is too short to be reflected."""
    missing = max(0, max(left, right) + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, missing)), (left, right), "reflect")
    return padded[..., : padded.shape[-1] - missing]


class Convolution(nn.Conv1d):
    """Convolution that maps n samples to ceil(n / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel_size[0]
        stride = self.stride[0]
        dilation = self.dilation[0]
        total = (kernel - 1) * dilation + 1 - stride
        right = total // 2
        return super().forward(reflect(x, total - right, right + -x.shape[-1] % stride))


class Upsampling(nn.ConvTranspose1d):
    """Transposed convolution that maps n samples to n * ratio."""

    def __init__(self, channels: int, out_channels: int, ratio: int) -> None:
        super().__init__(channels, out_channels, 2 * ratio, ratio)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        (ratio,) = self.stride
        right = ratio // 2
        whole = super().forward(x, output_size)
        return whole[..., ratio - right : whole.shape[-1] - right]


class Recurrence(nn.Module):
    """Unidirectional LSTM with a residual connection."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        return (self.lstm(steps)[0] + steps).permute(1, 2, 0)


class ResidualBlock(nn.Module):
    """Snake, dilated convolution, Snake, pointwise convolution, with a pointwise shortcut."""

    def __init__(self, channels: int, compress: int, kernel: int, dilation: int) -> None:
        super().__init__()
        inner = channels // compress
        self.block = nn.Sequential(
            Snake(),
            Convolution(channels, inner, kernel, dilation=dilation),
            Snake(),
            Convolution(inner, channels, 1),
        )
        self.shortcut = Convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


def residual_blocks(channels: int, shape: SeanetShape, widths: SeanetWidths) -> list[nn.Module]:
    """Return the residual blocks of one up- or downsampling stage, with increasing dilation."""
    return [
        ResidualBlock(channels, widths.compress, shape.residual_kernel, shape.dilation_base**layer)
        for layer in range(shape.num_residual_layers)
    ]


def make_decoder(shape: SeanetShape, widths: SeanetWidths) -> nn.Sequential:
    """Create the decoder: latents [B, latent, T] to waveform [B, 1, T * hop] through head, LSTM and tail."""
    channels = widths.base << len(shape.ratios)
    layers: list[nn.Module] = [
        Convolution(widths.latent, channels, shape.kernel),
        Recurrence(channels, widths.lstm_layers),
    ]
    for ratio in shape.ratios:
        layers += [Snake(), Upsampling(channels, channels // 2, ratio)]
        channels //= 2
        layers += residual_blocks(channels, shape, widths)
    return nn.Sequential(*layers, Snake(), Convolution(channels, 1, shape.last_kernel))


def make_encoder(shape: SeanetShape, widths: SeanetWidths) -> nn.Sequential:
    """Create the encoder, the mirror image of the decoder: waveform [B, 1, n] to latents [B, latent, ceil(n / hop)]."""
    channels = widths.base
    layers: list[nn.Module] = [Convolution(1, channels, shape.kernel)]
    for ratio in reversed(shape.ratios):
        layers += residual_blocks(channels, shape, widths)
        layers += [Snake(), Convolution(channels, channels * 2, 2 * ratio, ratio)]
        channels *= 2
    layers.append(Recurrence(channels, widths.lstm_layers))
    return nn.Sequential(*layers, Snake(), Convolution(channels, widths.latent, shape.last_kernel))
