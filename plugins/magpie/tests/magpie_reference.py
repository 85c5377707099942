"""Slow reference of Magpie TTS that reads the published layout of small releases.

For each row of a reply, all rows are computed again, in float64, each with the prior that it had as the newest one. So
the rows are those of NeMo with `use_kv_cache_for_inference`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from plugins.magpie.lab.random_magpie import KINDS, NUM_SPECIAL, VOICES, model_tensors, num_codes
from stretto.family.base import Family
from stretto.records.sampling import SamplingConfig
from stretto.testing.noise import uniform

MIN_LEAD = 3e-5  # of the best score and of the most attention
Prior = torch.Tensor | None


@dataclass
class Reply:
    """Reply of the reference.

    Attributes:
        codes: Codes of each row, without the row that ends the reply.
        attended: Position of the text that each row attended to.
        has_prior: True for rows after which the prior is not uniform.
        ended_by: `codes` or `heads` if the model ended the reply, or an empty string if a limit did.
    """

    codes: list[list[int]]
    attended: list[int]
    has_prior: list[bool]
    ended_by: str = ""


class MagpieReference:
    """Slow reference of a release of a kind."""

    def __init__(self, kind: str):
        self.config = KINDS[kind]
        self.num_streams, self.num_ids = num_codes(kind)
        self.num_codes = self.num_ids - NUM_SPECIAL
        self.end = self.num_codes + 1
        self.voice_rows = VOICES[kind][1]
        self.tensors = {name: tensor.double() for name, tensor in model_tensors(kind).items()}
        inference = self.config["inference_parameters"]
        every = [*range(self.config["decoder"]["n_layers"])]
        self.window = inference.get("attention_prior_lookahead_window", 5)
        self.read_layers = inference.get("estimate_alignment_from_layers", every)
        self.prior_layers = inference.get("apply_prior_to_layers", every)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.tensors[f"{name}.weight"]

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.tensors[f"{name}.weight"].T

    def _self_attention(self, x: torch.Tensor, name: str, num_heads: int) -> torch.Tensor:
        length, width = x.shape
        heads = self._product(x, f"{name}.qkv_net").view(length, 3, num_heads, -1).permute(1, 2, 0, 3)
        scores = heads[0] @ heads[1].transpose(1, 2) / math.sqrt(width // num_heads)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        return self._product((scores.softmax(-1) @ heads[2]).transpose(0, 1).reshape(length, width), f"{name}.o_net")

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Two convolutions over this position and those before it."""
        for layer in ("proj", "o_net"):
            weight = self.tensors[f"{name}.{layer}.conv.weight"]
            padded = F.pad(x, (0, 0, weight.shape[2] - 1, 0))
            x = sum(padded[at : at + len(x)] @ weight[:, :, at].T for at in range(weight.shape[2]))  # type: ignore[assignment]
            if layer == "proj":
                x = F.gelu(x, approximate="tanh")
        return x

    def stack(
        self,
        x: torch.Tensor,
        name: str,
        num_layers: int,
        num_heads: int,
        memory: torch.Tensor | None = None,
        priors: Sequence[Prior] = (),
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of a stack of layers [n, H], and the attention of the last row to the memory, or None."""
        x = x + self.tensors[f"{name}.position_embeddings.weight"][: len(x)]
        read = None
        for number in range(num_layers):
            layer = f"{name}.layers.{number}"
            x = x + self._self_attention(self._norm(x, f"{layer}.norm_self"), f"{layer}.self_attention", num_heads)
            if memory is not None:
                has_prior = number in self.prior_layers
                attended, weights = self._cross(x, memory, layer, priors if has_prior else [None] * len(x))
                x = x + attended
                if number in self.read_layers:
                    read = weights if read is None else read + weights
            x = x + self._mlp(self._norm(x, f"{layer}.norm_pos_ff"), f"{layer}.pos_ff")
        return x, read

    def _cross(
        self, x: torch.Tensor, memory: torch.Tensor, layer: str, priors: Sequence[Prior]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_heads = self.config["decoder"]["xa_n_heads"]
        query = self._product(self._norm(x, f"{layer}.norm_xattn_query"), f"{layer}.cross_attention.q_net")
        both = self._product(self._norm(memory, f"{layer}.norm_xattn_memory"), f"{layer}.cross_attention.kv_net")
        query = query.view(len(x), num_heads, -1).transpose(0, 1)
        keys, values = both.view(len(memory), 2, num_heads, -1).permute(1, 2, 0, 3)
        weights = (query @ keys.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1)
        factors = torch.stack([torch.ones(len(memory)).double() if prior is None else prior for prior in priors])
        weights = weights * factors
        weights = weights / weights.sum(-1, keepdim=True)
        mixed = (weights @ values).transpose(0, 1).reshape(len(x), -1)
        return self._product(mixed, f"{layer}.cross_attention.o_net"), weights[:, -1].mean(0)

    def encode(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the encoded text, [T, H]."""
        stack = self.config["encoder"]
        x = self.tensors["text_embedding.weight"][list(ids)]
        return self._norm(self.stack(x, "encoder", stack["n_layers"], stack["sa_n_heads"])[0], "encoder.norm_out")

    def hidden(
        self, voice: torch.Tensor, codes: Sequence[Sequence[int]], memory: torch.Tensor | None, priors: Sequence[Prior]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the decoder's output for the newest row [H], and its attention to the text [T], or None."""
        stack = self.config["decoder"]
        frames = [
            sum(self.tensors[f"audio_embeddings.{at}.weight"][code] for at, code in enumerate(row)) / len(row)
            for row in codes
        ]
        x = torch.cat([voice, torch.stack(frames)])  # type: ignore[arg-type]
        layers = stack["n_layers"], stack["sa_n_heads"]
        x, read = self.stack(x, "decoder", *layers, memory, [*[None] * len(voice), *priors])
        return self._norm(x, "decoder.norm_out")[-1], read

    def local_logits(self, hidden: torch.Tensor, codes: Sequence[int]) -> torch.Tensor:
        """Return the local transformer's logits of the next code of a row."""
        read = [self.tensors[f"audio_embeddings.{at}.weight"][code] for at, code in enumerate(codes)]
        x = torch.stack([hidden, *read])
        if "local_transformer_in_projection.weight" in self.tensors:
            x = self._product(x, "local_transformer_in_projection")
            x = x + self.tensors["local_transformer_in_projection.bias"]
        layers = self.config["local_transformer_n_layers"], self.config["local_transformer_n_heads"]
        x, _ = self.stack(x, "local_transformer", *layers)
        head = f"local_transformer_out_projections.{len(codes)}"
        return self._product(x[-1], head) + self.tensors[f"{head}.bias"]

    def attended_next(self, read: torch.Tensor, history: Sequence[int], length: int) -> int:
        """Return the position that the newest row attends to, given those of the rows before."""
        last = history[-1] if history else 1
        last += Counter(history)[last] >= 8
        near = read[last : max(min(last + self.window, length - 3), 0)]
        if not len(near):
            return length - 1
        best, *others = near.sort(descending=True).values.tolist()
        assert not others or best - others[0] > MIN_LEAD
        return last + int(near.argmax())

    def prior(self, history: Sequence[int], length: int) -> tuple[torch.Tensor, bool]:
        """Return the prior of the row after those that attended to `history`, and False if it is uniform."""
        prior = torch.full((length,), 0.1).double()
        if length <= 5:
            prior[:] = 1.0
        else:
            newest = history[-1]
            prior[max(1, newest - 1)] = 1.0
            for distance in range(self.window + 1):
                prior[min(newest + distance, length - 1)] = 1.0
        for place, number in Counter(history).items():
            if number >= 10:
                prior[: place + 1] = 0.1
        return prior, bool(prior.min() < prior.max())

    def reply(self, voice: int, ids: Sequence[int], sampling: SamplingConfig, family: Family) -> Reply:
        """Return the reply to the tokens of a text, with the noise of the engine."""
        width = self.config["embedding_dim"]
        spoken = self.tensors["baked_context_embedding.weight"][voice].view(-1, width)
        memory = self.encode(ids)
        codes = [[self.num_codes] * self.num_streams]  # the initial ids
        priors: list[Prior] = [None]
        reply = Reply([], [], [])
        scale = sampling.guidance_scale
        while len(reply.codes) < sampling.audio.max_rows:
            hidden, read = self.hidden(spoken, codes, memory, priors)
            other, _ = self.hidden(torch.zeros_like(spoken), codes, None, priors)
            assert read is not None
            may_end = len(reply.codes) >= sampling.audio.min_rows
            attended = self.attended_next(read / len(self.read_layers), reply.attended, len(ids))

            def guided(conditional: torch.Tensor, unconditional: torch.Tensor, may_end: bool = may_end) -> torch.Tensor:
                merged = scale * conditional + (1 - scale) * unconditional
                kept = [*range(self.num_codes), *[self.end] * may_end]
                return merged[kept]

            heads = [
                (self._product(state, "final_proj") + self.tensors["final_proj.bias"]).view(-1, self.num_ids)
                for state in (hidden, other)
            ]
            tops = [guided(*of_code).sort(descending=True) for of_code in zip(*heads, strict=True)]
            assert all(top.values[0] - top.values[1] > MIN_LEAD for top in tops)
            is_ended = any(int(top.indices[0]) == self.num_codes for top in tops)
            row: list[int] = []
            for stream in range(1, 1 + self.num_streams):
                logits = guided(self.local_logits(hidden, row), self.local_logits(other, row))
                first = family.layout.audio[stream].start
                position = self.voice_rows + 1 + len(reply.codes)
                drawn = _drawn(logits, first, position, stream, sampling)
                row.append(self.end if drawn == self.num_codes else drawn)
            if is_ended or self.end in row:
                reply.ended_by = "codes" if self.end in row else "heads"
                break
            reply.attended.append(attended)
            prior, has_prior = self.prior(reply.attended, len(ids))
            reply.has_prior.append(has_prior)
            priors.append(prior)
            codes.append(row)
            reply.codes.append(row)
        return reply

    def rows(self, reply: Reply, family: Family) -> list[list[int]]:
        """Return a reply as the ids of the checkpoint, including the row that ends it."""
        no_prior = family.layout.audio[0][-1]
        rows = []
        for codes, attended, has_prior in zip(reply.codes, reply.attended, reply.has_prior, strict=True):
            streams = zip(family.layout.audio[1:], codes, strict=True)
            rows.append([attended if has_prior else no_prior, *(ids.start + code for ids, code in streams)])
        return [*rows, [family.end_of_reply, *[family.layout.pad_id] * self.num_streams]]


def _drawn(logits: torch.Tensor, first: int, position: int, stream: int, sampling: SamplingConfig) -> int:
    """Return the number of the sampled id of a stream, whose ids begin with `first`."""
    options = sampling.audio if sampling.depth is None else sampling.depth
    ranked = sorted(range(len(logits)), key=lambda at: -logits[at].item())
    if options.temperature == 0:
        assert logits[ranked[0]] - logits[ranked[1]] > MIN_LEAD
        return ranked[0]
    scores = dict[int, float]()
    for at in ranked[: options.top_k or None]:
        noise = uniform(sampling.seed or 0, position, stream, first + at)
        scores[at] = logits[at].item() / options.temperature - math.log(-math.log(noise))
    best, *others = sorted(scores, key=lambda at: -scores[at])[:2]
    assert all(scores[best] - scores[other] > MIN_LEAD for other in others)
    return best
