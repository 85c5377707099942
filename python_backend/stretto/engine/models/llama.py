"""Llama with several streams per row."""

from vllm.model_executor.models.llama import LlamaForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin


class StrettoLlamaForCausalLM(MultiStreamMixin, LlamaForCausalLM):
    """The architecture that a checkpoint's config.json names."""
