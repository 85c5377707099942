"""Convolutions of a codec on a GPU's tensor cores: in half precision, in TF32, or as three TF32 products.

TF32 has the range of float32 and 11 significant bits. A float32 number is almost the sum of two such numbers: `high` is
the number rounded to TF32, and `low` the rest, rounded to TF32. Of the four products in (high + low) · (high' + low'),
low · low' is below the precision of float32. The other three are computed by one convolution with three times as many
input channels. Each product is exact in float32, in which tensor cores add them.

Codecs call torch's functions, which a mode of the calling thread replaces. So it applies to all codecs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MIN_CHANNELS = 8  # tensor cores compute tiles of eight channels
DROPPED_BITS = 13  # of the 24 significant bits of float32


def convolutions_in(precision: str) -> AbstractContextManager[object]:
    """Return a context that computes float32 convolutions of its thread in a precision. It can be entered repeatedly.

    Args:
        precision: One of `DecoderConfig.CONVOLUTIONS`.
    """
    return nullcontext() if precision == "float32" else Convolutions(precision)


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

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve other inputs and weights.

        TF32 is an argument of this call. The switch of the process, which other threads use, stays off.
        """
        sizes = self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding
        if x.is_meta:  # for which torch's builds for CUDA lack the operator below
            return torch.convolution(x, weight, None, *sizes, groups=1)
        cudnn = torch.backends.cudnn
        found: Tensor = torch._convolution(
            x,
            weight,
            None,
            *sizes,
            1,
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.enabled,
            allow_tf32=True,
        )
        return found


class Convolutions(TorchFunctionMode):
    """Mode that replaces one-dimensional float32 convolutions between at least MIN_CHANNELS channels.

    Convolutions in groups stay unchanged, because they have little arithmetic.

    Args:
        precision: `tf32`, `tf32x3`, or a key of HALF.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._half = HALF.get(precision)
        self._is_tf32 = precision == "tf32"
        # Converted weights by weight. A CUDA graph uses those from the decodes before its capture.
        self._weights = WeakTensorKeyDictionary()

    @property
    def num_bytes(self) -> int:
        """Memory of the converted weights in bytes."""
        return sum(each.nbytes for each in self._weights.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv1d:
            found = self._convolve(*args, **kwargs)
        elif func is torch.conv_transpose1d:
            found = self._convolve_transposed(*args, **kwargs)
        else:
            found = None
        return func(*args, **kwargs) if found is None else found

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
        sizes = (_sizes(each) for each in (stride, padding, 0, dilation))
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
        sizes = (_sizes(each) for each in (stride, padding, output_padding, dilation))
        return self._replace(ConvolutionCall(input, weight, True, *sizes), bias, groups)

    def _replace(self, call: ConvolutionCall, bias: Tensor | None, groups: int) -> Tensor | None:
        if call.x.dtype != torch.float32 or not is_replaced(call.weight, groups):
            return None
        out = self._run(call)
        return out if bias is None else out.add_(bias[:, None])

    def _run(self, call: ConvolutionCall) -> Tensor:
        if self._is_tf32 and call.x.device.type != "cpu":  # tensor cores round the operands themselves
            return call.run(call.x, call.weight)
        weight = self._weights.get(call.weight)
        if weight is None:
            weight = self._weights[call.weight] = self._converted_weight(call)
        if self._half is not None:  # `to` changes nothing on a GPU; on a CPU, the result is rounded as there
            return call.run(self._rounded(call.x), weight).to(self._half).float()
        return call.run(to_tf32(call.x) if self._is_tf32 else thirds(call.x), weight)

    def _converted_weight(self, call: ConvolutionCall) -> Tensor:
        if self._half is not None:
            return self._rounded(call.weight)
        high, low = split(call.weight)
        if self._is_tf32:
            return high
        return torch.cat([high, high, low], 0 if call.is_transposed else 1)

    def _rounded(self, x: Tensor) -> Tensor:
        """Return x in half precision; on a CPU, the same numbers in float32, in which a GPU adds their products."""
        assert self._half is not None
        return x.to(self._half).float() if x.device.type == "cpu" else x.to(self._half)


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
    """Return the high, the low and again the high parts of a float32 signal [B, C, n] as one signal [B, 3 · C, n]."""
    if x.device.type == "cpu":
        high, low = split(x)
        return torch.cat([high, low, high], 1)
    out = x.new_empty(x.shape[0], 3 * x.shape[1], x.shape[2])
    if x.device.type == "cuda":
        from stretto.decoder.tf32_kernel import split_on_device  # needs Triton's language

        split_on_device(out, x.contiguous())
    return out
