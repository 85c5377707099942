"""Operators of codecs on a GPU: their schemas, the shapes of their results, and where their kernels are.

The schemas need no Triton, so a host without a GPU can measure a codec's memory on torch's device `meta`.
"""

from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("stretto", "FRAGMENT")
LIBRARY.define(
    "join(Tensor x, Tensor? before, Tensor(a!)? after, int at, int steps, int again, int time,"
    " Tensor? rate, Tensor? height) -> Tensor"
)
LIBRARY.define(
    "convolve(Tensor x, Tensor weight, Tensor? bias, int dilation, int padding, int rate, int trim, int length,"
    " str precision) -> Tensor"
)
DEVICES = {"cuda", "meta"}  # types of devices whose signals kernels process; `meta` stands for a GPU


def runs_kernels(x: Tensor) -> bool:
    """Return True if kernels process a signal."""
    return x.device.type in DEVICES and x.dtype == torch.float32 and not torch.is_grad_enabled()


def joined_shape(
    x: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    at: int,
    steps: int,
    again: int,
    time: int,
    rate: Tensor | None,
    height: Tensor | None,
) -> Tensor:
    """Return memory for the result of `stretto::join`."""
    return x.new_empty(*x.shape[:time], steps + x.shape[time], *x.shape[time + 1 :])


def _join(x: Tensor, *others: Any) -> Tensor:
    from stretto.codecs.kernels.join import join_on_device  # needs Triton

    out = joined_shape(x, *others)
    join_on_device(out, x, *others)
    return out


def convolved_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    padding: int,
    rate: int,
    trim: int,
    length: int,
    precision: str,
) -> Tensor:
    """Return memory for the result of `stretto::convolve`."""
    return x.new_empty(len(x), len(weight) // rate, length)


def _convolve(x: Tensor, *others: Any) -> Tensor:
    from stretto.codecs.kernels.convolution import convolve_on_device  # needs Triton

    out = convolved_shape(x, *others)
    convolve_on_device(out, x, *others)
    return out


KERNELS = {"join": _join, "convolve": _convolve}
SHAPES = {"join": joined_shape, "convolve": convolved_shape}
for name in KERNELS:
    LIBRARY.impl(name, SHAPES[name], "Meta")
    LIBRARY.impl(name, KERNELS[name], "CUDA")
