"""A slow, obvious depth transformer: transformers' Llama or Qwen3, from a frame's beginning for each code."""

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from stretto.families.base import Family


class DepthReference:
    """Logits over the whole vocabulary, from the tensors `depth.…` of a checkpoint, which it takes out of `weights`."""

    def __init__(self, family: Family, weights: dict[str, Tensor]):
        spec = family.depth
        mine = {name.removeprefix("depth."): weights.pop(name) for name in list(weights) if name.startswith("depth.")}
        self.layout = family.layout
        config_class, model_class = (Qwen3Config, Qwen3Model) if spec.has_head_norms else (LlamaConfig, LlamaModel)
        config = config_class(
            vocab_size=1,
            hidden_size=spec.hidden,
            intermediate_size=spec.intermediate,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            rms_norm_eps=spec.eps,
            rope_parameters=dict(spec.rope),
        )
        self.first_head, self.heads, self.embed = (mine.pop(name) for name in ("first_head", "heads", "embed"))
        self.project = mine.pop("project.weight") if spec.projection else torch.eye(spec.hidden)
        self.bias = mine.pop("project.bias") if spec.projection == "biased" else torch.zeros(spec.hidden)
        self.ends = [] if family.end_frame else [family.end_of_audio]
        self.model = model_class(config).float().eval()
        named = {"embed_tokens.weight": torch.zeros(1, spec.hidden), "norm.weight": mine.pop("norm.weight")}
        for name, tensor in mine.items():
            kind = name.split(".")[2]
            part = "self_attn." if kind[:2] in ("q_", "k_", "v_", "o_") else "mlp." if "proj" in kind else ""
            named[name.replace(kind, part + kind)] = tensor
        self.model.load_state_dict(named)

    @torch.no_grad()
    def logits(self, hidden: Tensor, codes: list[int]) -> list[float]:
        """Of the stream behind those that carry `codes`, in a row whose hidden state is `hidden` [H]."""
        size = self.layout.codebook_size
        if not codes:
            return self._spread(self.first_head @ hidden, [*self.layout.audio[0], *self.ends])
        before = [self.embed[s * size + code - self.layout.audio[s].start] for s, code in enumerate(codes)]
        embeds = torch.stack([self.project @ hidden + self.bias, *before])
        state = self.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0, -1]
        return self._spread(self.heads[len(codes) - 1] @ state, list(self.layout.audio[len(codes)]))

    def _spread(self, logits: Tensor, ids: list[int]) -> list[float]:
        spread = torch.full((self.layout.vocab_size,), -math.inf)
        spread[ids] = logits
        return spread.tolist()
