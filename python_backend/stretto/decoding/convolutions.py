"""Convolutions of a codec on a GPU's tensor cores, in the modes of `DecoderConfig.CONVOLUTIONS`.

TF32 has the range of float32 and 11 significant bits. A float32 number is almost the sum of two such numbers: `high` is
the number rounded to TF32, and `low` the rest, rounded to TF32. Of the four products in (high + low) · (high' + low'),
low · low' is below the precision of float32; the mode `exact` adds the other three.

Causal layers launch their kernel in the precision of the calling thread (`codecs.device`). Other codecs call torch's
functions, and a `TorchFunctionMode` of the thread replaces these calls. On a GPU both ways use the same kernel. On a
CPU the operands are rounded in the same way, and torch convolves them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Token
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from stretto.codecs.base import Codec
from stretto.codecs.device import MIN_CHANNELS, packed_taps, padded_sizes, product, rows_of, transposed_sizes
from stretto.codecs.kernels.operators import PRECISION, runs_kernels
from stretto.config import DecoderConfig
from stretto.errors import CheckpointError

DROPPED_BITS = 13  # bits that TF32 drops from the 24 significant bits of float32


def convolutions_in(mode: str) -> AbstractContextManager[object]:
    """Return a reusable context that computes the thread's float32 convolutions in a mode of `CONVOLUTIONS`."""
    precision = DecoderConfig.CONVOLUTIONS[mode]
    return nullcontext() if precision is None else Convolutions(precision)


def check_mode(codec: Codec, mode: str) -> None:
    """Raise CheckpointError if a mode other than float32 changes no convolution of a codec that is a torch module."""
    if mode == "float32" or not isinstance(codec, nn.Module):
        return
    layers = (layer for layer in codec.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d))
    if not any(is_replaced(layer.weight, layer.groups) for layer in layers):
        name = codec.spec.name
        raise CheckpointError(f"convolutions must be float32 for codec {name}, which has none to change, got {mode}")


@dataclass(frozen=True, slots=True)
class ConvolutionCall:
    """Arguments of a convolution without a bias."""

    x: Tensor
    weight: Tensor
    is_transposed: bool
    stride: Sequence[int]
    padding: Sequence[int]
    output_padding: Sequence[int]
    dilation: Sequence[int]

    @property
    def is_product(self) -> bool:
        """True if the kernel supports the call: a convolution without stride, or a transposed one without dilation."""
        return tuple(self.dilation if self.is_transposed else self.stride) == (1,)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve `x` and `weight` with torch, with the sizes of this call."""
        sizes = self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding
        return torch.convolution(x, weight, bias, *sizes, groups=1)

    def packed_weight(self) -> Tensor:
        """Return the weight in the layout of the kernel, [k, rate · O, C]."""
        if self.is_transposed:
            return packed_taps(self.weight.permute(2, 1, 0), self.stride[0]).contiguous()
        return self.weight.permute(2, 0, 1).contiguous()

    def run_on_device(self, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
        """Convolve the inputs by this module's GPU kernel; `weight` has the layout of `packed_weight`."""
        (stride,) = self.stride
        (padding,) = self.padding
        (dilation,) = self.dilation
        (output_padding,) = self.output_padding
        if self.is_transposed:
            sizes = transposed_sizes(self.x.shape[2], self.weight.shape[2], stride, padding, output_padding)
        else:
            sizes = padded_sizes(self.x.shape[2], self.weight.shape[2], padding, dilation)
        return product(rows_of(self.x), weight, bias, sizes, precision).transpose(1, 2)


class Convolutions(TorchFunctionMode):
    """Mode in which one-dimensional float32 convolutions of at least MIN_CHANNELS channels use this module.

    Convolutions in groups stay unchanged, because they have little arithmetic, and so do those with a stride, which
    only encoders have.

    Args:
        precision: Value of `DecoderConfig.CONVOLUTIONS`: `tf32x3`, `tf32` or `bf16`.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._precision = precision
        # Converted weights, keyed by weight. A CUDA graph uses the weights converted before its capture.
        self._weights = WeakTensorKeyDictionary()
        self._entered = list[Token[str]]()

    def __enter__(self) -> Self:
        self._entered.append(PRECISION.set(self._precision))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        PRECISION.reset(self._entered.pop())

    @property
    def num_bytes(self) -> int:
        """Memory of the converted weights in bytes."""
        return sum(weight.nbytes for weight in self._weights.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv1d:
            result = self._convolve(*args, **kwargs)
        elif func is torch.conv_transpose1d:
            result = self._convolve_transposed(*args, **kwargs)
        else:
            result = None
        return func(*args, **kwargs) if result is None else result

    def _convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """Return the result of `torch.conv1d`, or None if it is not replaced."""
        sizes = (_sizes(size) for size in (stride, padding, 0, dilation))
        return self._replace(ConvolutionCall(input, weight, False, *sizes), bias, groups)

    def _convolve_transposed(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor | None:
        """Return the result of `torch.conv_transpose1d`, or None if it is not replaced."""
        sizes = (_sizes(size) for size in (stride, padding, output_padding, dilation))
        return self._replace(ConvolutionCall(input, weight, True, *sizes), bias, groups)

    def _replace(self, call: ConvolutionCall, bias: Tensor | None, groups: int) -> Tensor | None:
        if call.x.dtype != torch.float32 or not is_replaced(call.weight, groups) or not call.is_product:
            return None
        is_on_device = runs_kernels(call.x)
        weight = self._weights.get(call.weight)
        if weight is None:
            weight = self._weights[call.weight] = self._converted_weight(call, is_on_device)
        if is_on_device:
            return call.run_on_device(weight, bias, self._precision)
        x = thirds(call.x) if self._precision == "tf32x3" else self._converted(call.x)
        return call.run(x, weight, bias)

    def _converted_weight(self, call: ConvolutionCall, is_on_device: bool) -> Tensor:
        """Return the weight for the kernel or, on a CPU, the rounded weight for torch.

        For `tf32x3`, torch gets three parts (high, high and low), one for each part of the signal (`thirds`).
        """
        if is_on_device:
            return call.packed_weight()
        if self._precision != "tf32x3":
            return self._converted(call.weight)
        high, low = split(call.weight)
        return torch.cat([high, high, low], 0 if call.is_transposed else 1)

    def _converted(self, numbers: Tensor) -> Tensor:
        """Return numbers rounded for the product, as float32."""
        return to_tf32(numbers) if self._precision == "tf32" else numbers.bfloat16().float()


def is_replaced(weight: Tensor, groups: int) -> bool:
    """Return True if `Convolutions` replaces convolutions with this weight, [O, C, k] or [C, O, k]."""
    return groups == 1 and weight.dtype == torch.float32 and min(weight.shape[:2]) >= MIN_CHANNELS


def _sizes(value: int | Sequence[int]) -> Sequence[int]:
    return [value] if isinstance(value, int) else value


def to_tf32(x: Tensor) -> Tensor:
    """Return float32 numbers rounded to TF32, ties away from zero."""
    half = 1 << DROPPED_BITS - 1
    return x.contiguous().view(torch.int32).add(half).bitwise_and_(-2 * half).view(torch.float32)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and the low part of float32 numbers."""
    high = to_tf32(x)
    return high, to_tf32(x - high)


def thirds(x: Tensor) -> Tensor:
    """Return the high, the low and again the high parts of a signal [B, C, n] as one signal [B, 3 · C, n]."""
    high, low = split(x)
    return torch.cat([high, low, high], 1)
