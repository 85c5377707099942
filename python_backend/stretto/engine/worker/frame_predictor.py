"""From hidden states to what a model says beside stream 0: the seam between what predicts and what draws.

    hidden ──► stream 0 ──draw──► token ──► FramePredictor ──logits──► draw ──ids──► ... ──► the streams 1 ...
                                                  └──────────────◄──────────────┘

A predictor computes logits and asks `draw` for ids, once or as often as one id depends on another. `draw` merges the
logits of pairs, masks, draws with the noise of each stream, and draws repeats again: no predictor knows of any of that.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from stretto.engine.worker.heads import StreamHeads

# Raw logits [N, k * C] float32 of the k streams in a slice of the streams 1 ..., lines may lie apart -> ids [N, k].
Draw = Callable[[torch.Tensor, slice], torch.Tensor]


class FramePredictor(Protocol):
    """What draws the further ids of rows in an audio segment."""

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The streams 1 ... [N, K] beside `token` [N], stream 0 as drawn, from hidden states [N, H].

        Both halves of a pair are among the rows; what is drawn for the conditional one counts.
        """
        ...


class ParallelHeads:
    """All streams from one hidden state, at once."""

    def __init__(self, heads: StreamHeads):
        self._heads = heads

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The ids of all streams."""
        return draw(self._heads.raw_codes(hidden), slice(None))


class Readout(NamedTuple):
    """What is read from the hidden states of a family's model."""

    heads: StreamHeads
    frames: FramePredictor
