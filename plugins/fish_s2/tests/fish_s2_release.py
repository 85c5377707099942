"""Slow reference of Fish Audio S2 that reads the published layout of small releases.

The reference computes all positions again for each frame, in float64: neighbouring elements of a head are rotated, the
embeddings of a frame are summed from the published tables and divided, and ids are sampled by a loop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plugins.fish_s2.lab.random_fish_s2 import IDS, KINDS, config, model_tensors
from stretto.family.base import Family
from stretto.records.sampling import SamplingConfig
from stretto.testing.noise import uniform

WINDOW, AGAIN_TOP_P = 10, 0.9  # of repetition-aware sampling
MIN_LEAD, MIN_DISTANCE = 3e-5, 1e-6  # of the best score, and of a sum of probabilities from top-p


def reference_prompt(size: str, number: int) -> np.ndarray:
    """Return the rows of a prompt, [T, 1 + K]: text ids, and from the second prompt on also frames of a recording."""
    num_codebooks, num_codes, *_ = KINDS[size]
    random = np.random.default_rng(number)
    rows = np.zeros((30 + 7 * number, 1 + num_codebooks), np.int64)
    rows[:, 0] = random.integers(0, IDS["<|semantic:0|>"], len(rows))
    recorded = rows[10 : 10 + 9 * number]
    recorded[:, 1:] = random.integers(0, num_codes, recorded[:, 1:].shape)
    recorded[:, 0] = recorded[:, 1] + IDS["<|semantic:0|>"]
    return rows


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return rows [T, 1 + K] with the ids of the checkpoint, int32 [T, K]."""
    layout = family.layout
    is_frame = np.isin(rows[:, :1], layout.audio[0])
    codes = np.where(is_frame, rows[:, 2:] + [ids.start for ids in layout.audio[1:]], layout.pad_id)
    return np.concatenate([rows[:, :1], codes], 1).astype(np.int32)


@dataclass
class Reply:
    """Reply of the reference.

    Attributes:
        rows: Ids of the checkpoint in each row, including that of the end, which a length limit may have forced.
        num_again: Number of semantic tokens that were sampled again.
    """

    rows: list[list[int]]
    num_again: int


class FishReference:
    """Slow reference of a release of a kind."""

    def __init__(self, size: str, family: Family):
        self._config = config(size)
        self._family = family
        self._tensors = {name: torch.from_numpy(tensor).double() for name, tensor in model_tensors(size).items()}

    def embed(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the embeddings of rows [T][1 + K], [T, W]."""
        size, semantic = self._config["audio_decoder_config"]["vocab_size"], self._family.layout.audio[0]
        text = self._tensors["text_model.model.embeddings.weight"]
        tables = self._tensors["audio_decoder.codebook_embeddings.weight"]
        found = []
        for token, *codes in rows:
            embedded = text[token]
            if token in semantic:
                for codebook, code in enumerate(codes):
                    embedded = embedded + tables[codebook * size + code]
                embedded = embedded / math.sqrt(1 + len(codes))
            found.append(embedded)
        return torch.stack(found)

    def states(self, x: torch.Tensor, prefix: str, section: str) -> torch.Tensor:
        """Return the normalised output of a stack of layers, [T, W]."""
        numbers = self._config[section]
        for number in range(numbers["n_layer"]):
            layer = f"{prefix}layers.{number}."
            x = x + self._attend(self._norm(x, f"{layer}attention_norm", numbers), f"{layer}attention.", numbers)
            y = self._norm(x, f"{layer}ffn_norm", numbers)
            gate, up = (y @ self._weight(f"{layer}feed_forward.{name}").T for name in ("w1", "w3"))
            x = x + (torch.nn.functional.silu(gate) * up) @ self._weight(f"{layer}feed_forward.w2").T
        return self._norm(x, f"{prefix}norm", numbers)

    def _weight(self, name: str) -> torch.Tensor:
        return self._tensors[f"{name}.weight"]

    def _norm(self, x: torch.Tensor, name: str, numbers: dict[str, Any]) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + numbers["norm_eps"]).sqrt() * self._weight(name)

    def _attend(self, x: torch.Tensor, place: str, numbers: dict[str, Any]) -> torch.Tensor:
        length, head = len(x), numbers["head_dim"]
        counts = [numbers["n_head"], numbers["n_local_heads"], numbers["n_local_heads"]]
        fused = (x @ self._weight(f"{place}wqkv").T).split([head * count for count in counts], -1)
        query, key, value = (part.view(length, -1, head) for part in fused)
        if numbers["attention_qk_norm"]:
            query, key = self._norm(query, f"{place}q_norm", numbers), self._norm(key, f"{place}k_norm", numbers)
        query, key = self._turned(query, numbers), self._turned(key, numbers)
        shared = counts[0] // counts[1]
        outputs = []
        for each in range(counts[0]):
            scores = query[:, each] @ key[:, each // shared].T / math.sqrt(head)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            outputs.append(scores.softmax(-1) @ value[:, each // shared])
        return torch.cat(outputs, -1) @ self._weight(f"{place}wo").T

    @staticmethod
    def _turned(x: torch.Tensor, numbers: dict[str, Any]) -> torch.Tensor:
        """Turn each pair of neighbours in heads [T, n, D] of positions 0 to T - 1."""
        length, count, head = x.shape
        speeds = numbers["rope_base"] ** (-torch.arange(0, head, 2).double() / head)
        angles = torch.arange(length)[:, None, None] * speeds
        pairs = torch.view_as_complex(x.reshape(length, count, -1, 2)) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(pairs).reshape(x.shape)

    def reply(self, prompt: np.ndarray, sampling: SamplingConfig) -> Reply:
        """Return the reply to a prompt [T, 1 + K], with the noise of the engine."""
        rows, layout = prompt.tolist(), self._family.layout
        text = self._tensors["text_model.model.embeddings.weight"]
        table, head = (self._tensors[f"audio_decoder.{name}.weight"] for name in ("embeddings", "output"))
        frames, num_again = list[list[int]](), 0
        while len(frames) < sampling.audio.max_rows:
            state = self.states(self.embed(rows), "text_model.model.", "text_config")[-1]
            position = len(rows)
            ids = [*layout.audio[0], *([self._family.end_of_audio] if frames else [])]
            first = _drawn(text[ids] @ state, ids, position, 0, sampling)
            if first in layout.audio[0] and first in [frame[0] for frame in frames[1:]][-WINDOW:]:
                first = _drawn(text[ids] @ state, ids, position, 0, sampling, again=True)
                num_again += 1
            if first == self._family.end_of_audio:
                break
            codes = [first - layout.audio[0].start]
            for stream in range(1, len(layout.audio)):
                x = torch.stack([state, *(table[code] for code in codes)])
                logits = head @ self.states(x, "audio_decoder.", "audio_decoder_config")[-1]
                drawn = _drawn(logits, list(layout.audio[stream]), position, stream, sampling)
                codes.append(drawn - layout.audio[stream].start)
            rows.append([first, *codes])
            frames.append([ids.start + code for ids, code in zip(layout.audio, codes, strict=True)])
        return Reply([*frames, [self._family.end_of_audio, *[layout.pad_id] * (len(layout.audio) - 1)]], num_again)


def _drawn(
    logits: torch.Tensor, ids: list[int], position: int, stream: int, sampling: SamplingConfig, again: bool = False
) -> int:
    """Return a sampled id: at the options' temperature, or once more at 1, without small probabilities at 1."""
    temperature, top_p = (1.0, AGAIN_TOP_P) if again else (sampling.audio.temperature, sampling.audio.top_p)
    ranked = sorted(range(len(ids)), key=lambda at: -logits[at].item())
    if temperature == 0:
        assert logits[ranked[0]] - logits[ranked[1]] > MIN_LEAD
        return ids[ranked[0]]
    scores, total, probabilities = dict[int, float](), 0.0, logits.softmax(-1).tolist()
    for rank, at in enumerate(ranked[: sampling.audio.top_k]):
        total += probabilities[at]
        assert abs(total - top_p) > MIN_DISTANCE
        if rank and total > top_p:
            break
        noise = uniform(sampling.seed or 0, position, stream, ids[at], again)
        scores[ids[at]] = logits[at].item() / temperature - math.log(-math.log(noise))
    best, *others = sorted(scores, key=lambda token: -scores[token])[:2]
    assert all(scores[best] - scores[other] > MIN_LEAD for other in others)
    return best
