"""Qwen2 with one or several streams per row, and VITA-Audio's MCTP modules if its family has any."""

import itertools
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin
from stretto.engine.worker.module_rows import ModuleRows
from stretto.engine.worker.row_predictor import SaidRows


class StrettoQwen2ForCausalLM(MultiStreamMixin, Qwen2ForCausalLM):
    """Qwen2 with several streams per row, under the architecture name in config.json.

    MCTP modules are decoder layers after those of the backbone, named as in published files: module k is
    `model.layers.{L + k}`, `mtp_projs.{k}`, `mtp_embed_norms.{k}` and `mtp_hidden_norms.{k}`; `model.norm` and
    `lm_head` are shared. The backbone runs its L = `num_hidden_layers` layers only.

    Attributes:
        rows_hidden: Last hidden states of a step's rows, valid until the next step.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self.family.bursts is None:
            return
        config: Any = vllm_config.model_config.hf_config
        number, dtype = self.family.bursts.num_modules, vllm_config.model_config.dtype
        first, size, eps = config.num_hidden_layers, config.hidden_size, config.rms_norm_eps
        for k in range(number):
            name = f"model.layers.{first + k}"
            self.model.layers.append(
                Qwen2DecoderLayer(config, vllm_config.cache_config, vllm_config.quant_config, prefix=name)
            )
        self.mtp_projs = nn.ModuleList(
            ReplicatedLinear(2 * size, size, bias=False, return_bias=False) for _ in range(number)
        )  # vLLM's, because torch's adds up in an order that depends on the number of rows
        self.mtp_embed_norms = nn.ModuleList(RMSNorm(size, eps=eps) for _ in range(number))
        self.mtp_hidden_norms = nn.ModuleList(RMSNorm(size, eps=eps) for _ in range(number))
        max_rows = vllm_config.scheduler_config.max_num_batched_tokens
        assert isinstance(dtype, torch.dtype)
        self.rows_hidden = torch.zeros(max_rows, size, dtype=dtype)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Run the backbone and keep its hidden states for the modules, at a fixed address."""
        hidden = super().forward(*args, **inputs)
        if self.family.bursts is not None:
            self.rows_hidden[: len(hidden)].copy_(hidden)
        return hidden

    def run_module(self, k: int, embeds: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the output of module k, [N, H].

        Rotary positions are those of the embedded rows, as published.

        Args:
            k: Number of the module.
            embeds: Embeddings of the rows k + 1 after the processed ones, [N, H].
            hidden: Output of module k - 1, [N, H].
            positions: Positions of the processed rows, [N].
        """
        both = torch.cat([self.mtp_embed_norms[k](embeds), self.mtp_hidden_norms[k](hidden)], -1)
        layer = self.model.layers[self.model.config.num_hidden_layers + k]
        states, residual = layer(positions + (k + 1), self.mtp_projs[k](both), None)
        states, _ = self.model.norm(states, residual)
        return states

    def module_attention(self) -> set[str]:
        """Return the names of the modules' attention layers in vLLM."""
        assert self.family.bursts is not None
        first = self.model.config.num_hidden_layers
        layers = itertools.islice(self.model.layers, first, first + self.family.bursts.num_modules)
        return {layer.self_attn.attn.layer_name for layer in layers}

    def row_predictor(self, said: SaidRows, vllm_config: VllmConfig) -> ModuleRows:
        """Return the predictor of further rows, made of the modules."""
        assert self.family.bursts is not None
        return ModuleRows(self, said, self.family.bursts, vllm_config)
