"""Qwen3 with several streams per row."""

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin


class StrettoQwen3ForCausalLM(MultiStreamMixin, Qwen3ForCausalLM):
    """Qwen3 with several streams per row, under the architecture name in config.json."""
