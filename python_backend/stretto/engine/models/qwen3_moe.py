"""Qwen3-MoE with several streams per row."""

from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin


# Type-checked against Llama, whose base classes vLLM lists in another order.
class StrettoQwen3MoeForCausalLM(MultiStreamMixin, Qwen3MoeForCausalLM):  # type: ignore[misc, metaclass]
    """Qwen3-MoE with several streams per row, under the architecture name in config.json."""
