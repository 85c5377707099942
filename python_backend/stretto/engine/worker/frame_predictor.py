"""From hidden states to what a model says beside stream 0: the seam between what predicts and what draws.

    hidden ──► stream 0 ──draw──► token ──► FramePredictor ──logits──► draw ──ids──► ... ──► the streams 1 ...
                                                  └──────────────◄──────────────┘

A predictor computes logits and asks `draw` for ids, once or as often as one id depends on another. `draw` merges the
logits of pairs, masks, draws with the noise of each stream, and draws repeats again: no predictor knows of any of that.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from stretto.engine.worker.heads import EVERY, Product, StreamHeads, exact_product
from stretto.streams.layout import StreamLayout

# Raw logits [N, k * C] float32 of the k streams in a slice of the streams 1 ..., lines may lie apart -> ids [N, k].
Draw = Callable[[torch.Tensor, slice], torch.Tensor]


class FramePredictor(Protocol):
    """What draws the further ids of rows in an audio segment.

    reads_drawn: whether it reads what has been drawn, `token` or ids of `draw`; only then do both halves have it.
    """

    reads_drawn: bool

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The streams 1 ... [N, K] beside `token` [N], stream 0 as drawn, from hidden states [N, H].

        Both halves of a pair are among the rows; what is drawn for the conditional one counts.
        """
        ...


class ParallelHeads:
    """All streams from one hidden state, at once."""

    reads_drawn = False

    def __init__(self, heads: StreamHeads):
        self._heads = heads

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The ids of all streams."""
        return draw(self._heads.raw_codes(hidden), EVERY)


class Depth(Protocol):
    """A depth transformer (`models/depth_transformer.py`): what draws each stream, after the codes of those before."""

    heads: torch.Tensor

    def prepare(self, max_rows: int) -> None: ...

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor: ...

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor: ...


class DepthFrames:
    """One stream after another, by a depth transformer that has read those before it: as many draws as streams."""

    reads_drawn = True

    def __init__(self, depth: Depth, layout: StreamLayout, max_rows: int):
        self._depth, self._num_codes = depth, layout.codebook_size
        # What a code's id is more than its row of the depth transformer's table.
        self._shifts = [ids.start - stream * len(ids) for stream, ids in enumerate(layout.audio)]
        self._heads: list[Product] = [exact_product(rows) for rows in depth.heads.data]
        depth.prepare(max_rows)

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The ids, drawn one stream at a time."""
        code = (token - self._shifts[0]).clamp(0, self._num_codes - 1)  # of rows that carry no code nothing is read
        drawn = [draw(self._heads[0](self._depth.begin(hidden, code)), slice(0, 1))]
        for stream, head in enumerate(self._heads[1:], 1):
            code = drawn[-1][:, 0] - self._shifts[stream]
            drawn.append(draw(head(self._depth.next(code, stream + 1)), slice(stream, stream + 1)))
        return torch.cat(drawn, 1)


class Readout(NamedTuple):
    """What is read from the hidden states of a family's model."""

    heads: StreamHeads
    frames: FramePredictor
