"""Qwen2 with one stream or several per row."""

from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin


class StrettoQwen2ForCausalLM(MultiStreamMixin, Qwen2ForCausalLM):
    """The architecture that a checkpoint's config.json names."""
