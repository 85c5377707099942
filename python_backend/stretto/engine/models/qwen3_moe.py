"""Qwen3 with experts in the place of its feed-forward, and several streams per row."""

from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin


# For a type checker the mixin goes over Llama, whose interfaces vLLM has in another order.
class StrettoQwen3MoeForCausalLM(MultiStreamMixin, Qwen3MoeForCausalLM):  # type: ignore[misc, metaclass]
    """The architecture that a checkpoint's config.json names."""
