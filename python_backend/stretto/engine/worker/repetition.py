"""Repetition-aware sampling on the device: repeated codes are drawn again."""

from dataclasses import dataclass

import torch

from stretto.engine.kernels.gpu.draw import draw
from stretto.engine.worker.arrays import Array, Arrays
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import SlotTables
from stretto.sampling.draw import DrawParams, DrawPlan
from stretto.sampling.noise import redraw_keys
from stretto.sampling.repetition import RepetitionRule, is_repeated
from stretto.streams.layout import StreamLayout

NOT_COUNTED = -1
EVERYTHING = DrawPlan(is_random=True, num_candidates=0, has_top_p=False)
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # logits of a draw, token ids, noise keys


@dataclass(frozen=True)
class RecentRows:
    """Last rows of A replies.

    Attributes:
        slots: Run slots, [A, 1].
        positions: Positions from the last row backwards, [A, W].
        counts: True for audio rows of the reply, [A, W].
        rule: Repetition rule of each reply.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    rule: RepetitionRule


class RepetitionGuard:
    """History of all streams by slot and position, and the repetition rule over it.

    Only codes of codebooks are drawn again, not pads, markers or end ids. `tokens` [R, T] int32 is vLLM's copy of
    stream 0; the other streams are in `tables`.
    """

    def __init__(self, tokens: torch.Tensor, tables: SlotTables, layout: StreamLayout, arrays: Arrays):
        self._tokens, self._codes, self._arrays = tokens, tables.codes, arrays
        codebooks = [layout.audio[s] if s in layout.codebook_streams else range(0) for s in range(len(layout.audio))]
        self._codebooks = torch.tensor([[ids.start, ids.stop] for ids in codebooks], device=tokens.device)

    def recent(self, rows: Rows, index: Array | None, window: int) -> RecentRows:
        """Return the `window` rows before those of `rows` selected by `index` (None for all)."""

        def column(values: Array) -> torch.Tensor:
            return self._arrays.tensor(values if index is None else values[index])

        position, start = column(rows.position), column(rows.state.audio_start)
        positions = position[:, None] - torch.arange(1, window + 1, device=position.device)
        return RecentRows(
            slots=column(rows.slots)[:, None],
            positions=positions.clamp(min=0),
            counts=positions >= start.clamp(min=0)[:, None],
            rule=RepetitionRule(column(rows.limits.ras_window), column(rows.limits.ras_max_repeats)),
        )

    def first(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows) -> torch.Tensor:
        """Return stream 0, [A, 1], drawn again from `logits` (guided and masked) where repeated."""
        history = self._tokens[recent.slots, recent.positions]
        return self._redraw(drawn, history[..., None], self._codebooks[:1], logits, recent)

    def auxiliary(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows, streams: slice) -> torch.Tensor:
        """Return `streams` of streams 1 and up, [A, k], drawn again from guided, masked `logits` where repeated."""
        codebooks = self._codebooks[1:]
        history = self._codes[recent.slots, recent.positions, : len(codebooks)][..., streams]
        return self._redraw(drawn, history, codebooks[streams], logits, recent)

    def _redraw(
        self, drawn: torch.Tensor, history: torch.Tensor, codebooks: torch.Tensor, logits: Logits, recent: RecentRows
    ) -> torch.Tensor:
        history = torch.where(recent.counts[..., None], history, NOT_COUNTED)
        is_code = (drawn >= codebooks[:, 0]) & (drawn < codebooks[:, 1])
        again = is_repeated(drawn, history, recent.rule) & is_code
        values, ids, keys = logits
        plain = values.new_ones(len(drawn))
        params = DrawParams(plain, torch.zeros_like(recent.rule.window), plain)
        return torch.where(again, draw(values, ids, redraw_keys(keys), params, EVERYTHING), drawn)
