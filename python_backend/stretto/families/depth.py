"""Depth transformers as data: small causal transformers over the codebooks of one frame, reset for every frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class DepthSpec:
    """Hyperparameters of a depth transformer with layers of Llama or Qwen3.

    Position 0 reads the row's hidden state, and position p the code of stream p - 1. The output of position p samples
    stream p. Codes have embedding tables of their own, of width `hidden`, which include any projection that the
    published model applies.

    Attributes:
        hidden: Width.
        rope: `rope_parameters` of a published config.json, including `rope_theta`.
        projection: Linear layer from the backbone's width to `hidden`, with or without bias; None if the widths are
            equal.
        has_head_norms: True if queries and keys are normalised per head, as in Qwen3.
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
