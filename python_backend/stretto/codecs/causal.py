"""Causal layers of codecs, which keep their last inputs in the state between windows.

On a GPU, the kernel launch of a layer also applies the activation of the next layer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs import device
from stretto.codecs.device import Ending
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.memory import Memory
from stretto.codecs.streaming import AlphaSnake, Elu, Snake, convolve, upsample

KERNEL = 7
DILATIONS = (1, 3, 9)
EPS = 1e-9  # of SnakeBeta
NEXT_EPS = 1e-6  # of the ConvNeXt norm
CACHE_BYTES = 1_200_000  # size of activations that a CPU decodes in one part; its L2 cache has 1 to 2 MB


class Convolution(nn.Module):
    """Causal convolution that stores its last inputs in the state.

    Attributes:
        late: Number of steps at an utterance's start to set to zero; set by the module that contains the layer.
        kept: Number of elements in the layer's part of the state.
    """

    late = 0

    def __init__(self, channels: int, out_channels: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out_channels, kernel, dilation=dilation, groups=groups)
        self.before = (kernel - 1) * dilation
        self.kept = channels * self.before

    def forward(self, x: Tensor, memory: Memory, activation: Snake | Elu | None = None) -> Tensor:
        """Return the outputs for x [B, C, n]. `activation`, if given, is applied to x first and must map 0 to 0."""
        if runs_kernels(x) and device.is_supported(self.conv):
            return self.launch(x if activation is None else activation(x), memory)[0]
        if self.before:
            x = memory.recall(memory.masked_start(x, self.late), self.before, activation=activation)
        elif activation is not None:
            x = activation(x)
        return convolve(x, self.conv)

    def launch(self, x: Tensor, memory: Memory, ending: Ending = device.PLAIN) -> tuple[Tensor, Tensor]:
        """Launch the layer on a GPU; return its outputs, and their activations if `ending` requests them."""
        return device.convolve(x, self.conv, memory.part(self.kept, x.shape[2], self.late), ending)


class Upsampling(nn.Module):
    """Transposed convolution trimmed on the right. The first `late` inputs of an utterance are set to zero."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        rate: int,
        late: int = 0,
        groups: int = 1,
        bias: bool = True,
        name: str = "conv",
    ) -> None:
        super().__init__()
        self.late = late
        self._name = name
        self.add_module(name, nn.ConvTranspose1d(channels, out_channels, kernel, rate, groups=groups, bias=bias))
        self.before = kernel // rate - 1
        self.kept = channels * self.before

    def forward(self, x: Tensor, memory: Memory, activation: Snake | Elu | None = None) -> Tensor:
        """Return the outputs for x [B, C, n], or for its activation, which must map 0 to 0."""
        if runs_kernels(x) and device.is_supported(getattr(self, self._name)):
            return self.launch(x if activation is None else activation(x), memory)[0]
        x = memory.masked_start(x, self.late)
        if self.before:
            x = memory.recall(x, self.before, activation=activation)
        elif activation is not None:
            x = activation(x)
        return upsample(x, getattr(self, self._name))

    def launch(self, x: Tensor, memory: Memory, ending: Ending = device.PLAIN) -> tuple[Tensor, Tensor]:
        return device.convolve(x, getattr(self, self._name), memory.part(self.kept, x.shape[2], self.late), ending)


class Downsampling(nn.Module):
    """Causal convolution with a stride.

    Args:
        repeats_first: True to pad the start of an utterance with its first input instead of zeros.
    """

    def __init__(
        self, channels: int, out_channels: int, rate: int, bias: bool = True, repeats_first: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out_channels, 2 * rate, rate, bias=bias)
        self.rate = rate
        self.kept = channels * rate
        self.repeats_first = repeats_first

    def forward(self, x: Tensor, memory: Memory, activation: Snake | Elu | None = None) -> Tensor:
        """Return the output [B, C, n / rate] for x [B, C, n], or for its activation."""
        if runs_kernels(x) and not self.repeats_first:
            return self.launch(x if activation is None else activation(x), memory)[0]
        both = memory.recall(x, self.rate, activation=activation)
        if self.repeats_first:
            start = torch.where(memory.is_start[:, None, None], x[..., :1], both[..., : self.rate])
            both = torch.cat([start, x], 2)
        return self.conv(both)

    def launch(self, x: Tensor, memory: Memory, ending: Ending = device.PLAIN) -> tuple[Tensor, Tensor]:
        return device.convolve(x, self.conv, memory.part(self.kept, x.shape[2]), ending)


class Padded:
    """Torch layer with its own padding and without a state, for use in a `Link`."""

    def __init__(self, conv: device.Convolving) -> None:
        self._conv = conv

    def launch(self, x: Tensor, memory: Memory | None, ending: Ending = device.PLAIN) -> tuple[Tensor, Tensor]:
        return device.convolve(x, self._conv, None, ending)


Launched = Convolution | Upsampling | Downsampling


@dataclass(frozen=True, slots=True)
class Link:
    """Layer of one kernel launch, and its connection to the layers before it.

    Attributes:
        begins_residual: True if its input, before the activation, is a residual.
        ends_residual: True if the last residual is added to its output.
    """

    layer: Launched | Padded
    activation: Snake | Elu | None = None
    begins_residual: bool = False
    ends_residual: bool = False


def links_of(layers: Iterable[nn.Module]) -> Iterator[Link]:
    """Yield the links of layers; a layer that consists of others has a method `links`."""
    activation: Snake | Elu | None = None
    for layer in layers:
        if isinstance(layer, Snake | Elu):
            activation = layer
            continue
        links = [Link(layer)] if isinstance(layer, Launched) else list(layer.links())  # type: ignore[operator]
        if activation is not None:
            links[0] = replace(links[0], activation=activation)
            activation = None
        yield from links


def residual_links(layers: Iterable[nn.Module]) -> Iterator[Link]:
    """Yield the links of layers with a residual connection around all of them."""
    links = list(links_of(layers))
    links[0] = replace(links[0], begins_residual=True)
    links[-1] = replace(links[-1], ends_residual=True)
    yield from links


def run_links(links: Sequence[Link], x: Tensor, memory: Any) -> Tensor:
    """Launch links in order; each applies the next link's activation, and also keeps the plain output if needed."""
    followers: list[Link | None] = [*links[1:], None]
    residual: Tensor | None = None
    active: Tensor | None = None
    for link, follower in zip(links, followers, strict=True):
        if link.begins_residual:
            residual = x
        if link.activation is not None and active is None:
            active = link.activation(x)
        ending = Ending(
            residual=residual if link.ends_residual else None,
            activation=None if follower is None else follower.activation,
            keeps_sums=follower is None or follower.activation is None or follower.begins_residual,
        )
        x, activations = link.layer.launch(x if active is None else active, memory, ending)
        active = None if ending.activation is None else activations
    return x


def run(layers: Sequence[nn.Module], x: Tensor, memory: Memory, in_parts: bool = True) -> Tensor:
    """Apply layers one after another to x [B, C, n]; each activation is applied by the layer that follows it.

    Args:
        in_parts: False to process the whole batch in each layer on a CPU, for layers whose outputs become smaller.
    """
    if runs_kernels(x):
        return run_links(list(links_of(layers)), x, memory)
    steps = steps_of(layers)
    if in_parts:
        return run_in_parts(steps, x, memory)
    for step in steps:
        x = step(x, memory)
    return x


def steps_of(layers: Iterable[nn.Module]) -> list[Callable[[Tensor, Memory], Tensor]]:
    """Return the layers as functions of their input and memory; each activation is applied by the layer after it."""
    steps = list[Callable[[Tensor, Memory], Tensor]]()
    activation: Snake | Elu | None = None
    for layer in layers:
        if isinstance(layer, Snake | Elu):
            activation = layer
            continue
        steps.append(layer if activation is None else partial(layer, activation=activation))
        activation = None
    return steps


class SnakeBeta(Snake):
    """SnakeBeta activation x + sin²(a x) / b, with log a and log b per channel (BigVGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.alpha.exp(), 1 / (self.beta.exp() + EPS)


def channel_snake(channels: int) -> AlphaSnake:
    """Return a Snake activation whose weight has the shape [C, 1]."""
    return AlphaSnake(nn.Parameter(torch.ones(channels, 1)))


class ResidualUnit(nn.Module):
    """Snake, dilated convolution, Snake, pointwise convolution, with a residual connection."""

    def __init__(self, channels: int, dilation: int, late: int = 0, snake: Callable[[int], Snake] = SnakeBeta) -> None:
        super().__init__()
        self.act1 = snake(channels)
        self.act2 = snake(channels)
        self.conv1 = Convolution(channels, channels, KERNEL, dilation)
        self.conv1.late = late
        self.conv2 = Convolution(channels, channels, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if runs_kernels(x):
            return run_links(list(self.links()), x, memory)
        return self.conv2(self.conv1(x, memory, self.act1), memory, self.act2).add_(x)

    def links(self) -> Iterator[Link]:
        return residual_links([self.act1, self.conv1, self.act2, self.conv2])


class ResidualBlock(nn.Module):
    """ELU and a convolution, twice, with a residual connection; `layers` are those four."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(layers)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if runs_kernels(x):
            return run_links(list(self.links()), x, memory)
        return run(list(self.block), x, memory).add_(x)

    def links(self) -> Iterator[Link]:
        return residual_links(self.block)


class Block(nn.Module):
    """Snake, a transposed convolution that halves the channels, and residual units.

    Args:
        late: Numbers of steps at an utterance's start to set to zero, in the block's input and in its output.
    """

    def __init__(
        self, channels: int, rate: int, late: tuple[int, int] = (0, 0), snake: Callable[[int], Snake] = SnakeBeta
    ) -> None:
        super().__init__()
        half = channels // 2
        units = [ResidualUnit(half, dilation, late[1], snake) for dilation in DILATIONS]
        self.block = nn.ModuleList([snake(channels), Upsampling(channels, half, 2 * rate, rate, late[0]), *units])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        snake, upsampling, *units = self.block
        x = upsampling(x, memory, snake)
        for unit in units:
            x = unit(x, memory)
        return x

    def links(self) -> Iterator[Link]:
        return links_of(self.block)


class ConvNext(nn.Module):
    """ConvNeXt block (Liu et al., arXiv 2201.03545): depthwise convolution, norm, two layers with GELU, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = Convolution(channels, channels, KERNEL, groups=channels)
        self.norm = nn.LayerNorm(channels, NEXT_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if runs_kernels(x):
            return self._launch(x, memory)
        steps = self.norm(self.dwconv(x, memory).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(steps)))).transpose(1, 2)

    def _launch(self, x: Tensor, memory: Memory) -> Tensor:
        filtered, _ = self.dwconv.launch(x, memory)
        wide = device.multiply(
            device.rows_of(filtered),
            self.pwconv1.weight,
            self.pwconv1.bias,
            device.norm_of(self.norm),
            Ending(activation="gelu"),
        )
        ending = Ending(gain=self.gamma, residual=device.rows_of(x))
        return device.multiply(wide, self.pwconv2.weight, self.pwconv2.bias, ending=ending).transpose(1, 2)


def samples_of(x: Tensor, memory: Memory, upsample: nn.ModuleList, decoder: nn.ModuleList) -> Tensor:
    """Return the samples [B, n · hop] of latents x [B, C, n]: apply upsampling stages, then the layers of `decoder`."""
    for stage in upsample:
        for layer in stage.children():
            x = layer(x, memory)
    return run(list(decoder), x, memory)[:, 0]


def run_in_parts(layers: Sequence[Callable[[Tensor, Memory], Tensor]], x: Tensor, memory: Memory) -> Tensor:
    """Apply layers in order to x [B, C, n]; on a CPU, split the batch once activations exceed the caches."""
    for index, layer in enumerate(layers):
        size = max(1, CACHE_BYTES * len(x) // (x.numel() * x.element_size()))
        if size < len(x) and x.device.type == "cpu":
            parts = memory.split(len(x), size)
            return torch.cat([run_in_parts(layers[index:], x[rows], part_memory) for rows, part_memory in parts])
        x = layer(x, memory)
    return x
