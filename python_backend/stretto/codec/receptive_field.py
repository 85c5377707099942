"""How far a convolutional decoder sees: pure arithmetic on kernels, strides and dilations.

The layers are walked from the waveform back to the frames with the interval of positions that the samples of one
frame depend on (models' decoders are chains: a residual unit sees what its longest path sees).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution that keeps the length: output j reads inputs j - before … j - before + dilation * (kernel - 1)."""

    kernel: int
    before: int  # zeros put before the input
    dilation: int = 1

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Inputs that outputs first … last depend on."""
        return first - self.before, last - self.before + self.dilation * (self.kernel - 1)

    def length(self, length: int) -> int:
        """Outputs of so many inputs."""
        return length


@dataclass(frozen=True, slots=True)
class Upsample:
    """A transposed convolution: input i writes outputs i * stride - before … i * stride - before + kernel - 1.

    before, after: outputs cut off at the two ends (torch's `padding`, and `padding - output_padding`).
    """

    kernel: int
    stride: int
    before: int
    after: int

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Inputs that outputs first … last depend on."""
        return ceil((first + self.before - self.kernel + 1) / self.stride), (last + self.before) // self.stride

    def length(self, length: int) -> int:
        """Outputs of so many inputs."""
        return (length - 1) * self.stride + self.kernel - self.before - self.after


Layer = Conv | Upsample


def same(kernel: int, dilation: int = 1) -> Conv:
    """A convolution that sees as far ahead as behind."""
    return Conv(kernel, dilation * (kernel - 1) // 2, dilation)


def dac_layers(upsampling_ratios: Iterable[int], output_padding: bool) -> list[Layer]:
    """The decoder of DAC (transformers' DacDecoder): per block one upsampling and residual units of dilation 1, 3, 9.

    output_padding: whether odd strides complete their last frame, as X-codec's and Higgs' decoders do.
    """
    layers: list[Layer] = [same(7)]
    for stride in upsampling_ratios:
        before = ceil(stride / 2)
        after = before - (stride % 2 if output_padding else 0)
        layers += [Upsample(2 * stride, stride, before, after), same(7, 1), same(7, 3), same(7, 9)]
    return [*layers, same(7)]


def samples_per_frame(layers: Sequence[Layer]) -> int:
    """The product of the strides."""
    return prod(layer.stride for layer in layers if isinstance(layer, Upsample))


def reach(layers: Sequence[Layer], first: int, last: int) -> tuple[int, int]:
    """Frames that samples first … last depend on."""
    for layer in reversed(layers):
        first, last = layer.reach(first, last)
    return first, last


def context(layers: Sequence[Layer]) -> tuple[int, int]:
    """Frames (left, right) beside a frame that its samples depend on."""
    first, last = reach(layers, 0, samples_per_frame(layers) - 1)
    return -first, last


def tail_samples(layers: Sequence[Layer]) -> int:
    """By how many samples the waveform falls short of whole frames, for any number of frames."""
    frames = 1 + sum(context(layers))
    length = frames
    for layer in layers:
        length = layer.length(length)
    return frames * samples_per_frame(layers) - length
