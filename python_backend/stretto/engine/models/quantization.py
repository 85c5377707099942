"""Quantization, of checkpoints and while loading: vLLM's methods, and checks for unsupported ones."""

from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.kernels.linear.scaled_mm import MarlinFP8ScaledMMLinearKernel
from vllm.model_executor.layers.fused_moe import RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

from stretto.engine.kernels.gpu.fused import fp8_product
from stretto.errors import CheckpointError

UNQUANTIZED = UnquantizedEmbeddingMethod, UnquantizedLinearMethod


def quantization_of(vllm_config: VllmConfig, part: str) -> QuantizationConfig | None:
    """Return vLLM's quantization for the layers of `part`, for example `depth`; None if the model is not quantized.

    If a checkpoint in AWQ format does not list its unquantized modules, vLLM lists the parents of all unquantized
    tensors. The parent of `depth.embed` is `depth`, which would exclude all layers of the depth transformer, so `part`
    is removed from that list.
    """
    quant_config: Any = vllm_config.quant_config
    record = vllm_config.model_config.hf_config.to_dict()
    listed = getattr(quant_config, "modules_to_not_convert", None)
    if listed and not (record.get("quantization_config") or {}).get("modules_to_not_convert"):
        quant_config.modules_to_not_convert = [name for name in listed if name != part]
    return quant_config


def check_quantization(model: nn.Module) -> None:
    """Raise CheckpointError if a layer's quantization is not supported.

    Embeddings and heads are read as tables, so they may not be quantized. An input may not be quantized with one scale
    for all rows of a batch, because a reply would then depend on the other requests.
    """
    for name, layer in model.named_modules():
        method = type(getattr(layer, "quant_method", None))
        if isinstance(layer, VocabParallelEmbedding) and method not in UNQUANTIZED:
            raise CheckpointError(f"quantization: {name}: expected unquantized weights, got {method.__name__}")
        if shares_scale(layer):
            expected = "one scale for each row of the input (for example fp8_per_channel)"
            raise CheckpointError(
                f"quantization: {name}: expected {expected}, got one for the whole batch ({method.__name__})"
            )


def shares_scale(layer: nn.Module) -> bool:
    """Return True if a layer quantizes its input with one scale that depends on all rows of a batch."""
    if isinstance(layer, RoutedExperts):
        method = layer.quant_method
        return not isinstance(method, UnquantizedFusedMoEMethod) and not getattr(method, "per_act_token_quant", False)
    product = fp8_product(layer)
    if product is None or isinstance(product, MarlinFP8ScaledMMLinearKernel):  # multiplies in 16 bits
        return False
    scale = product.config.activation_quant_key.scale
    return not scale.static and scale.group_shape.is_per_tensor()
