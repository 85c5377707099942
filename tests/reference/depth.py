"""A slow, obvious depth transformer: transformers' Llama, which reads the frame from its beginning for every code."""

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from stretto.families.base import Family


class DepthReference:
    """Logits over the whole vocabulary, from the tensors `depth.…` of a checkpoint, which it takes out of `weights`."""

    def __init__(self, family: Family, weights: dict[str, Tensor]):
        spec = family.depth
        mine = {name.removeprefix("depth."): weights.pop(name) for name in list(weights) if name.startswith("depth.")}
        self.layout = family.layout
        config = LlamaConfig(
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
        self.project = mine.pop("project.weight")
        self.model = LlamaModel(config).float().eval()
        named = {"embed_tokens.weight": torch.zeros(1, spec.hidden), "norm.weight": mine.pop("norm.weight")}
        for name, tensor in mine.items():
            kind = name.split(".")[2]
            part = "self_attn." if kind[0] in "qkvo" and kind[1] == "_" else "mlp." if "proj" in kind else ""
            named[name.replace(kind, part + kind)] = tensor
        self.model.load_state_dict(named)

    @torch.no_grad()
    def logits(self, hidden: Tensor, codes: list[int]) -> list[float]:
        """Of the stream behind those that carry `codes`, in a row whose hidden state is `hidden` [H]."""
        size = self.layout.codebook_size
        if not codes:
            return self._spread(self.first_head @ hidden, 0)
        before = [self.embed[s * size + code - self.layout.audio[s].start] for s, code in enumerate(codes)]
        embeds = torch.stack([self.project @ hidden, *before])
        state = self.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0, -1]
        return self._spread(self.heads[len(codes) - 1] @ state, len(codes))

    def _spread(self, logits: Tensor, stream: int) -> list[float]:
        spread = torch.full((self.layout.vocab_size,), -math.inf)
        ids = self.layout.audio[stream]
        spread[ids.start : ids.stop] = logits
        return spread.tolist()
