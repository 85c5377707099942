"""OLMo 2 with several streams per row, which vLLM lacks."""

from typing import Any

import torch
from torch import nn
from transformers import Olmo2Config
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen2 import Qwen2MLP, Qwen2Model
from vllm.model_executor.models.qwen3 import Qwen3Attention, Qwen3ForCausalLM
from vllm.transformers_utils.config import set_default_rope_theta

from stretto.engine.models.multi_stream import MultiStreamMixin


class ShardedNorm(nn.Module):
    """RMSNorm over `size` features that are split across tensor-parallel ranks: [..., size / ranks]."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self._size = size
        self._eps = eps
        self._ranks = get_tensor_model_parallel_world_size()
        self._rank = get_tensor_model_parallel_rank()
        self.weight = nn.Parameter(torch.ones(size // self._ranks))
        self.weight.weight_loader = self._load  # type: ignore[attr-defined]

    def _load(self, parameter: nn.Parameter, loaded: torch.Tensor) -> None:
        if loaded.shape != (self._size,):
            raise ValueError(f"norm: expected a weight of shape [{self._size}], got {list(loaded.shape)}")
        parameter.data.copy_(loaded.chunk(self._ranks)[self._rank])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the norm to this rank's features, with the mean square over all ranks, in float32."""
        wide = x.float()
        squares = tensor_model_parallel_all_reduce(wide.square().sum(-1, keepdim=True))
        return (self.weight * wide * torch.rsqrt(squares / self._size + self._eps)).to(x.dtype)


def full_width_norm(size: int, eps: float) -> nn.Module:
    """Return an RMSNorm over `size` features: vLLM's own layer on one rank, `ShardedNorm` on several."""
    return ShardedNorm(size, eps) if get_tensor_model_parallel_world_size() > 1 else RMSNorm(size, eps=eps)


class Olmo2Attention(Qwen3Attention):
    """OLMo 2 attention: Qwen3 attention with query and key norms over all heads instead of per head."""

    def __init__(self, config: Olmo2Config, **layer_args: Any):
        set_default_rope_theta(config, default_theta=500000)
        assert config.num_key_value_heads is not None
        super().__init__(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            rope_parameters=dict(config.rope_parameters or {}),
            max_position=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            qkv_bias=config.attention_bias,
            **layer_args,
        )
        if self.total_num_kv_heads < get_tensor_model_parallel_world_size():
            raise ValueError(
                f"OLMo 2: expected tensor_parallel_size of at most {self.total_num_kv_heads}, the number of key heads"
            )
        for name, heads in (("q_norm", self.total_num_heads), ("k_norm", self.total_num_kv_heads)):
            self.register_module(name, full_width_norm(heads * self.head_dim, config.rms_norm_eps))

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, self.q_norm(q), self.k_norm(k))
        output, _ = self.o_proj(self.attn(q, k, v))
        return output


class Olmo2DecoderLayer(nn.Module):
    """OLMo 2 decoder layer, which normalises the outputs of attention and MLP before adding them to the residual."""

    def __init__(
        self,
        config: Olmo2Config,
        cache_config: CacheConfig | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ):
        super().__init__()
        layer_args = {"cache_config": cache_config, "quant_config": quant_config}
        self.self_attn = Olmo2Attention(config, prefix=f"{prefix}.self_attn", **layer_args)
        self.mlp = Qwen2MLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=quant_config,
            prefix=f"{prefix}.mlp",
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the MLP output and the residual, [N, H] each; the next layer or the final norm adds them."""
        entered = hidden_states if residual is None else hidden_states + residual
        attended = entered + self.post_attention_layernorm(self.self_attn(positions, entered))
        return self.post_feedforward_layernorm(self.mlp(attended)), attended


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class Olmo2Model(Qwen2Model):
    """OLMo 2 without its head: embeddings, layers and the final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=Olmo2DecoderLayer)


class Olmo2ForCausalLM(Qwen3ForCausalLM):
    """OLMo 2 with its LM head. All layers are on one rank, because pipeline parallelism is not supported."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        nn.Module.__init__(self)
        self.config = config = vllm_config.model_config.hf_config
        self.vllm_config = vllm_config
        self.quant_config = vllm_config.quant_config
        self.register_module("model", Olmo2Model(vllm_config=vllm_config, prefix=f"{prefix}model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=self.quant_config, prefix=f"{prefix}lm_head"
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors


class StrettoOlmo2ForCausalLM(MultiStreamMixin, Olmo2ForCausalLM):
    """OLMo 2 with several streams per row; selected by `architectures` in config.json."""
