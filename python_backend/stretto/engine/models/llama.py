"""Llama with several streams per row."""

from vllm.model_executor.models.llama import LlamaForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin


class StrettoLlamaForCausalLM(MultiStreamMixin, LlamaForCausalLM):
    """Llama with several streams per row, under the architecture name in config.json."""
