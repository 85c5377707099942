"""Backbone of MOSS-TTS-Nano: Llama's attention with biases, and LayerNorm and the MLP of GPT-2."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.models.llama import LlamaAttention, LlamaForCausalLM, LlamaModel

from stretto.engine.models.latents import activate_rows
from stretto.engine.models.multi_stream import MultiStreamMixin
from stretto_moss.moss_tts_local.model import ACTIVATIONS


class Gpt2Layer(nn.Module):
    """Layer of GPT-2 with rotary positions."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        width = config.hidden_size
        inner = config.intermediate_size
        shared: dict[str, Any] = {"bias": True, "quant_config": vllm_config.quant_config, "return_bias": False}
        self.self_attn = LlamaAttention(
            config=config,
            hidden_size=width,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            quant_config=vllm_config.quant_config,
            bias=True,
            bias_o_proj=True,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.self_attn",
        )
        self.fc_in = ColumnParallelLinear(width, inner, prefix=f"{prefix}.fc_in", **shared)
        self.fc_out = RowParallelLinear(inner, width, prefix=f"{prefix}.fc_out", **shared)
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=config.rms_norm_eps) for _ in range(2))
        self._activate = ACTIVATIONS[config.hidden_act]

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the MLP's output [N, H], and the residual to which the caller must add it."""
        entered = hidden_states if residual is None else hidden_states + residual
        attended = entered + self.self_attn(positions=positions, hidden_states=self.ln_1(entered))
        return self.fc_out(activate_rows(self._activate, self.fc_in(self.ln_2(attended)))), attended


class FinalNorm(nn.LayerNorm):
    """LayerNorm of the sum of two tensors, called like vLLM's RMSNorm."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of the sum [N, H], and the sum."""
        total = x + residual
        return super().forward(total), total


class StrettoMossNanoForCausalLM(MultiStreamMixin, LlamaForCausalLM):
    """MOSS-TTS-Nano for vLLM; selected by `architectures` in config.json."""

    def _init_model(
        self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = Gpt2Layer
    ) -> LlamaModel:
        """Create the model. vLLM calls this method with the layer class of Llama."""
        model = LlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=Gpt2Layer)
        config: Any = vllm_config.model_config.hf_config
        model.norm = FinalNorm(config.hidden_size, eps=config.rms_norm_eps)  # type: ignore[assignment]
        return model
