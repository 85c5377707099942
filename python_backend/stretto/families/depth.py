"""A depth transformer as data: a small causal transformer over the codebooks of one frame, new for every frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class DepthSpec:
    """The numbers of its layers, which are Llama's or Qwen3's.

    Position 0 reads the row's hidden state, position p the code of stream p - 1; what comes out of position p draws
    stream p. hidden: its width. rope: as a published config.json has `rope_parameters`, with `rope_theta`.
    projection: what takes hidden states of the backbone to its width, with a bias or without; None where they have it.
    Codes lie in tables of their own, of its width: what a model puts them through is in these already.
    has_head_norms: whether queries and keys are normalised head by head, as Qwen3's.
    """

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope: Mapping[str, Any] = field(hash=False)
    projection: Literal["plain", "biased"] | None = "plain"
    has_head_norms: bool = False
