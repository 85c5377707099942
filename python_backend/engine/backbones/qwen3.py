"""Qwen3 with several streams per row."""

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from python_backend.engine.backbones.multi_stream import MultiStreamMixin


class StrettoQwen3ForCausalLM(MultiStreamMixin, Qwen3ForCausalLM):
    """The architecture that a checkpoint's config.json names."""
