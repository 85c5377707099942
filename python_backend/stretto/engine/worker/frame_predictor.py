"""Interface between predictors of the further streams of a row and the draw.

    hidden ──► stream 0 ──draw──► token ──► FramePredictor ──logits──► draw ──ids──► ... ──► the streams 1 ...
                                                  └──────────────◄──────────────┘

A predictor computes logits and calls `draw` for ids, once, or repeatedly if ids depend on each other. `draw` applies
guidance, masks, noise and repetition rules, so predictors need not know about them.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from stretto.engine.worker.heads import EVERY, Product, StreamHeads, exact_product
from stretto.streams.layout import StreamLayout

# (raw float32 logits [N, k * C], possibly strided; slice of k of streams 1 and up) -> ids [N, k].
Draw = Callable[[torch.Tensor, slice], torch.Tensor]


class FramePredictor(Protocol):
    """Predictor of the further ids of rows in an audio segment.

    Attributes:
        reads_drawn: True if it reads drawn ids (`token` or results of `draw`); they are then shared with unconditional
            rows.
    """

    reads_drawn: bool

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the ids of streams 1 and up, [N, K].

        The rows include both requests of each CFG pair; the ids drawn for the conditional one count.

        Args:
            hidden: Hidden states, [N, H].
            token: Stream 0 as drawn, [N].
            draw: Draws ids from logits.
        """
        ...


class ParallelHeads:
    """Predictor of all streams at once from one hidden state."""

    reads_drawn = False

    def __init__(self, heads: StreamHeads):
        self._heads = heads

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the ids of all streams."""
        return draw(self._heads.raw_codes(hidden), EVERY)


class Depth(Protocol):
    """Depth transformer (`models/depth_transformer.py`), which predicts each stream from the previous ones."""

    heads: torch.Tensor

    def prepare(self, max_rows: int) -> None: ...

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor: ...

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor: ...


class DepthFrames:
    """Predictor by a depth transformer, one stream after another."""

    reads_drawn = True

    def __init__(self, depth: Depth, layout: StreamLayout, max_rows: int):
        self._depth, self._num_codes = depth, layout.codebook_size
        # Difference between a code's id and its row in the depth transformer's table.
        self._shifts = [ids.start - stream * len(ids) for stream, ids in enumerate(layout.audio)]
        self._heads: list[Product] = [exact_product(rows) for rows in depth.heads.data]
        depth.prepare(max_rows)

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the ids, drawn one stream at a time."""
        code = (token - self._shifts[0]).clamp(0, self._num_codes - 1)  # results of rows without a code are ignored
        drawn = [draw(self._heads[0](self._depth.begin(hidden, code)), slice(0, 1))]
        for stream, head in enumerate(self._heads[1:], 1):
            code = drawn[-1][:, 0] - self._shifts[stream]
            drawn.append(draw(head(self._depth.next(code, stream + 1)), slice(stream, stream + 1)))
        return torch.cat(drawn, 1)


class Readout(NamedTuple):
    """Output heads and frame predictor of a family's model."""

    heads: StreamHeads
    frames: FramePredictor
