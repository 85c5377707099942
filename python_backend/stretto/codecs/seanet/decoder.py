"""SEANet encoder and decoder for whole signals: non-causal, reflect padding, Snake, as in ESPnet's codecs.

Layers are numbered as in ESPnet's `model` lists (Snake counts as one), so that tensor names match.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.seanet.stream import SeanetShape


class Snake(nn.Module):
    """Snake with a = 1 and no parameters, as in ESPnet's codecs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.sin().square()


@dataclass(frozen=True, slots=True)
class SeanetWidths:
    """Channels: `base` at the waveform, doubled at every ratio; `latent` at the quantiser."""

    base: int
    latent: int
    compress: int = 2  # residual branches are narrower by this factor
    lstm_layers: int = 2


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Return x [B, C, n] padded by reflection; signals too short for that are extended with silence."""
    missing = max(0, max(left, right) + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, missing)), (left, right), "reflect")
    return padded[..., : padded.shape[-1] - missing]


class Convolution(nn.Conv1d):
    """Convolution to ceil(n / stride) samples."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        total = (kernel - 1) * dilation + 1 - stride
        right = total // 2
        return super().forward(reflect(x, total - right, right + -x.shape[-1] % stride))


class Upsampling(nn.ConvTranspose1d):
    """Transposed convolution to n * ratio samples."""

    def __init__(self, channels: int, out_channels: int, ratio: int) -> None:
        super().__init__(channels, out_channels, 2 * ratio, ratio)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        (ratio,) = self.stride
        right = ratio // 2
        whole = super().forward(x, output_size)
        return whole[..., ratio - right : whole.shape[-1] - right]


class Recurrence(nn.Module):
    """Forward LSTM with a residual path."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        return (self.lstm(steps)[0] + steps).permute(1, 2, 0)


class ResidualBlock(nn.Module):
    """Snake, dilated convolution, Snake, pointwise convolution, with a pointwise residual path."""

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
    """Return the residual blocks of one rate, with increasing dilations."""
    return [
        ResidualBlock(channels, widths.compress, shape.residual_kernel, shape.dilation_base**layer)
        for layer in range(shape.num_residual_layers)
    ]


def make_decoder(shape: SeanetShape, widths: SeanetWidths) -> nn.Sequential:
    """Return the decoder, latents [B, latent, T] to waveform [B, 1, T * hop]: head, LSTM, tail."""
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
    """Return the encoder, waveform [B, 1, n] to latents [B, latent, ceil(n / hop)], mirroring the decoder."""
    channels = widths.base
    layers: list[nn.Module] = [Convolution(1, channels, shape.kernel)]
    for ratio in reversed(shape.ratios):
        layers += residual_blocks(channels, shape, widths)
        layers += [Snake(), Convolution(channels, channels * 2, 2 * ratio, ratio)]
        channels *= 2
    layers.append(Recurrence(channels, widths.lstm_layers))
    return nn.Sequential(*layers, Snake(), Convolution(channels, widths.latent, shape.last_kernel))
