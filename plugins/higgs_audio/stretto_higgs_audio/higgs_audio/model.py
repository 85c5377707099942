"""Higgs Audio v2 backbone: Llama with separate feed-forward layers and norms for rows of codes.

Attention and its key-value cache are the same for all rows (see `HiggsAudioV2DecoderLayer` in transformers). Both kinds
of feed-forward layers are computed for every row, and the result for the row's own kind is selected. The host therefore
need not know which rows are codes. No shape depends on this, and a row's result is the same in any batch. The cost is a
second feed-forward computation in each step.
"""

from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel
from vllm.sequence import IntermediateTensors

from stretto.engine.models.multi_stream import MultiStreamMixin


class HiggsAudioDecoderLayer(LlamaDecoderLayer):
    """Llama layer with additional norms and an additional MLP for rows of codes."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        config: Any = vllm_config.model_config.hf_config
        size = config.hidden_size
        eps = config.rms_norm_eps
        self.audio_mlp = LlamaMLP(
            hidden_size=size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=self.get_quant_config(vllm_config),
            prefix=f"{prefix}.audio_mlp",
        )
        self.audio_input_layernorm = RMSNorm(size, eps=eps)
        self.audio_post_attention_layernorm = RMSNorm(size, eps=eps)

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        is_audio: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of the MLP, and the residual to which it must be added.

        `is_audio` [N, 1] is True for rows of codes.
        """
        assert is_audio is not None
        entered = hidden_states if residual is None else hidden_states + residual
        normed = torch.where(is_audio, self.audio_input_layernorm(entered), self.input_layernorm(entered))
        attended = entered + self.self_attn(positions=positions, hidden_states=normed)
        audio = self.audio_mlp(self.audio_post_attention_layernorm(attended))
        text = self.mlp(self.post_attention_layernorm(attended))
        return torch.where(is_audio, audio, text), attended


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0, "is_audio": 0}
)
class HiggsAudioModel(LlamaModel):
    """Embeddings, layers, and a final norm for all rows."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=HiggsAudioDecoderLayer)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
        is_audio: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Compute hidden states as Llama does, and pass `is_audio` [N, 1] to the layers."""
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, is_audio=is_audio)


class StrettoHiggsAudioForCausalLM(MultiStreamMixin, LlamaForCausalLM):
    """Higgs Audio v2 for vLLM, which `architectures` in config.json selects."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        max_rows = vllm_config.scheduler_config.max_num_batched_tokens
        self._is_audio = torch.zeros(max_rows, 1, dtype=torch.bool)  # fixed address for CUDA graphs

    def _init_model(
        self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = HiggsAudioDecoderLayer
    ) -> HiggsAudioModel:
        """Create the model. vLLM calls this method with the layer class."""
        return HiggsAudioModel(vllm_config=vllm_config, prefix=prefix)

    def layer_inputs(self, rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return `is_audio` [N, 1] for the rows of a step: True for rows with a code on stream 0."""
        assert rows is not None
        is_audio = self._is_audio[: len(rows)]
        torch.ge(rows[:, :1], self.family.layout.audio[0].start, out=is_audio)
        return {"is_audio": is_audio}
