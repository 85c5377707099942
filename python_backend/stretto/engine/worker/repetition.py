"""Draws again, on the device, what a stream has said too often lately; where to find what it has said."""

from dataclasses import dataclass, replace

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
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of a draw, with its token ids and its keys


@dataclass(frozen=True)
class RecentRows:
    """Where the last rows of A replies lie: slots [A, 1], positions [A, W] from the last row backwards.

    counts [A, W]: which of them are rows of the reply's audio. temperature, of_codes [A]: of stream 0 and the others;
    greedy rows keep what they drew.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    rule: RepetitionRule
    temperature: torch.Tensor
    of_codes: torch.Tensor


class RepetitionGuard:
    """The history of all streams by slot and position, and the rule over it.

    tokens [R, T] int32: stream 0 of every slot, as vLLM keeps it; the other streams are in `tables`. Only codes of
    codebooks are drawn again, not pads, markers or ends.
    """

    def __init__(self, tokens: torch.Tensor, tables: SlotTables, layout: StreamLayout, arrays: Arrays):
        self._tokens, self._codes, self._arrays = tokens, tables.codes, arrays
        codebooks = [layout.audio[s] if s in layout.codebook_streams else range(0) for s in range(len(layout.audio))]
        self._codebooks = torch.tensor([[ids.start, ids.stop] for ids in codebooks], device=tokens.device)

    def recent(self, rows: Rows, index: Array | None, window: int) -> RecentRows:
        """The `window` rows, as many as any reply asks for, before those of `rows` that `index` picks (None: all)."""

        def column(values: Array) -> torch.Tensor:
            return self._arrays.tensor(values if index is None else values[index])

        position, start = column(rows.position), column(rows.state.audio_start)
        positions = position[:, None] - torch.arange(1, window + 1, device=position.device)
        return RecentRows(
            slots=column(rows.slots)[:, None],
            positions=positions.clamp(min=0),
            counts=positions >= start.clamp(min=0)[:, None],
            rule=RepetitionRule(column(rows.limits.ras_window), column(rows.limits.ras_max_repeats)),
            temperature=column(rows.scales.audio_temperature),
            of_codes=column(rows.scales.depth_temperature),
        )

    def first(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows) -> torch.Tensor:
        """Stream 0 as drawn from `logits`, guided and masked, or drawn again: [A, 1]."""
        history = self._tokens[recent.slots, recent.positions]
        return self._redraw(drawn, history[..., None], self._codebooks[:1], logits, recent)

    def auxiliary(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows, streams: slice) -> torch.Tensor:
        """`streams` of the drawn streams 1 ... as drawn from `logits`, guided and masked, or drawn again: [A, k]."""
        codebooks = self._codebooks[1:]
        history = self._codes[recent.slots, recent.positions, : len(codebooks)][..., streams]
        recent = replace(recent, temperature=recent.of_codes)
        return self._redraw(drawn, history, codebooks[streams], logits, recent)

    def _redraw(
        self, drawn: torch.Tensor, history: torch.Tensor, codebooks: torch.Tensor, logits: Logits, recent: RecentRows
    ) -> torch.Tensor:
        history = torch.where(recent.counts[..., None], history, NOT_COUNTED)
        is_code = (drawn >= codebooks[:, 0]) & (drawn < codebooks[:, 1])
        again = is_repeated(drawn, history, recent.rule) & is_code & (recent.temperature > 0)[:, None]
        values, ids, keys = logits
        plain = torch.ones_like(recent.temperature)
        params = DrawParams(plain, torch.zeros_like(recent.rule.window), plain)
        return torch.where(again, draw(values, ids, redraw_keys(keys), params, EVERYTHING), drawn)
