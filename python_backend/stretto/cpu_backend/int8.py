"""Products of int8 weights and int8 activations on the CPU (oneDNN), for the linear layers of a model.

Each weight has one scale per output, each activation one scale per row. Sums of integers are exact, so a row's result
does not depend on the other rows.
"""

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm import _custom_ops as ops
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from stretto.cpu_backend.products import MAX_PREPARED, padded_size

LARGEST = 127  # largest quantized number
MIN_WIDTH = 256  # narrower layers take less time than the quantization of their input
TINY = torch.finfo(torch.float32).tiny

LOGGER = logging.getLogger(__name__)


class Int8Product:
    """Product `x @ weight.T + bias` with a constant float32 or bfloat16 `weight` [N, H], which is quantized."""

    def __init__(self, weight: torch.Tensor):
        exact = weight.detach().float()
        # The operator stores only the address of the scales.
        self._scales = (exact.abs().amax(1, keepdim=True).clamp(min=TINY) / LARGEST).T.contiguous()
        quantized = (exact / self._scales.T).round().to(torch.int8)
        self.num_columns = len(weight)
        self._handler = ops.create_onednn_scaled_mm(
            quantized.t(), self._scales, weight.dtype, True, False, MAX_PREPARED
        )
        # Selected once, because torch would otherwise choose among an operator's overloads in each call.
        self._quantize: Any = torch.ops._C.dynamic_scaled_int8_quant.default
        self._multiply: Any = torch.ops._C.onednn_scaled_mm.default

    def __call__(self, x: torch.Tensor, weight: object = None, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product [..., N] of x [..., H]. The argument `weight`, which vLLM passes, is not used."""
        if x.dim() != 2:
            return self(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], self.num_columns)
        num_rows = x.shape[0]
        size = padded_size(num_rows)
        x = x.contiguous() if size == num_rows else F.pad(x, (0, 0, 0, size - num_rows))
        product = x.new_empty(size, self.num_columns)
        self.write(x, product, bias)
        return product if size == num_rows else product[:num_rows]

    def write(self, x: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Write the product of a contiguous x [M, H] to `out` [M, N], without padding M."""
        rows = torch.empty_like(x, dtype=torch.int8)
        scales = x.new_empty(x.shape[0], 1, dtype=torch.float32)
        self._quantize(rows, x, scales, None)
        self._multiply(out, rows, scales, None, None, bias, self._handler.handler_tensor)


class Int8Linear(UnquantizedLinearMethod):
    """Linear-layer method of vLLM that quantizes the weight after it was loaded."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Replace the layer's weight by a product."""
        layer.cpu_linear = Int8Product(layer.weight)
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


@cache
def has_int8(dtype: torch.dtype) -> bool:
    """Return True if int8 products are fast and exact here: if the processor has VNNI and a test product is exact."""
    capabilities = torch.cpu.get_capabilities()
    if not ops._supports_onednn or not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return False
    generator = torch.Generator().manual_seed(0)
    weight, rows, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((64, 256), (9, 256), (64,)))
    try:
        multiply = Int8Product(weight)
        alone = torch.cat([multiply(row, None, bias) for row in rows.split(1)])
        whole = multiply(rows, None, bias)
    except RuntimeError:  # older processors have no products in bfloat16
        return False
    return alone.equal(whole) and torch.allclose(alone, F.linear(rows, weight, bias), atol=1.0)


def use_int8(model: nn.Module) -> None:
    """Replace the unquantized linear layers of a model, except narrow ones, by int8 products.

    Call this before vLLM packs the weights. If the processor has no fast int8 products, a warning is logged instead.
    """
    for layer in model.modules():
        if not isinstance(layer, LinearBase) or type(layer.quant_method) is not UnquantizedLinearMethod:
            continue
        weight = layer.get_parameter("weight")
        if min(weight.shape) < MIN_WIDTH:
            continue
        if not has_int8(weight.dtype):
            LOGGER.warning("int8: this processor has no VNNI instructions; the weights stay as stored")
            return
        layer.quant_method = Int8Linear()
