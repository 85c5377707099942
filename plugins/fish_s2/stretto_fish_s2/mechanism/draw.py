"""Sampling of codes from the probabilities at temperature 1 (`LateTemperature`), in numpy or torch.

In other families, top-p applies after top-k and at the reply's temperature, and keeps the code whose probability
makes the sum exceed p.
"""

import math
from dataclasses import replace

import torch

from stretto.engine.kernels.draw import draw
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.predictors import Readout
from stretto.engine.worker.sampler import Logits, RecentRows, RepetitionGuard, RowDraw
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto_fish_s2.family import LateTemperature


def kept(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Return logits, float32 [A, k, C], with -inf for the ids that top-k or top-p excludes.

    Args:
        top_k: Number of ids to keep, int [A]; 0 is off.
        top_p: Sum of the probabilities to keep at most, besides the most probable id, float32 [A]; 1 is off.
    """
    num_ranked = logits.shape[-1]
    if logits.device.type == "cpu" and bool((top_k > 0).all()):  # on a GPU, this would wait for the device
        num_ranked = min(num_ranked, int(top_k.max()))
    top_k = top_k[:, None, None]
    top_p = top_p.masked_fill(top_p >= 1, math.inf)[:, None, None]
    ranked = logits.topk(num_ranked, dim=-1)
    mass = logits.softmax(-1).gather(-1, ranked.indices).cumsum(-1)
    ranks = torch.arange(num_ranked, device=logits.device)
    num_kept = ((mass <= top_p) & ((ranks < top_k) | (top_k == 0))).sum(-1, keepdim=True)
    floor = ranked.values.gather(-1, (num_kept - 1).clamp(min=0))
    return logits.masked_fill(logits < floor, -math.inf)


def draw_late(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """Sample ids at the temperature of each row, as `draw` does, from those that are kept at temperature 1."""
    if plan.is_random:
        logits = kept(logits, params.top_k, params.top_p)
        params = replace(params, top_k=torch.zeros_like(params.top_k), top_p=torch.ones_like(params.top_p))
        plan = replace(plan, has_top_p=False)
    return draw(logits, token_ids, keys, params, plan)


class FirstCodebookGuard(RepetitionGuard):
    """Repetition-aware sampling of codebook 0, in which the first frame of a reply does not count."""

    def recent(self, rows: Rows, index: Array | None, window: int) -> RecentRows:
        recent = super().recent(rows, index, window + 1)
        return replace(recent, positions=recent.positions[:, :-1], counts=recent.counts[:, 1:])

    def auxiliary(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows, streams: slice) -> torch.Tensor:
        return drawn


class LateTemperatureDraw(RowDraw):
    """Sampler in numpy or torch, with top-k and top-p at temperature 1."""

    def __init__(
        self,
        rules: LateTemperature,
        readout: Readout,
        segments: SegmentState,
        tables: SlotTables,
        arrays: Arrays,
        tokens: torch.Tensor,
    ):
        super().__init__(readout, segments, tables, arrays, tokens)
        self.guard = FirstCodebookGuard(tokens, tables, segments.family, arrays)
        self._redraw_top_p = rules.redraw_top_p
        self._top_k = torch.zeros(0, dtype=torch.int64)  # top-k of the rows sampled last

    def chosen(
        self, logits: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> torch.Tensor:
        self._top_k = step.audio.top_k
        return draw_late(logits[:, None], self.heads.first_ids[None], keys, step.audio, plan.audio)

    def chosen_others(self, drawn_from: Logits, plan: BatchPlan, step: PlanArrays) -> torch.Tensor:
        return draw_late(*drawn_from, step.depth, plan.depth)

    def redrawn_from(self, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the logits that `redraw_top_p` and the reply's top-k keep."""
        top_p = torch.full_like(logits[:, 0], self._redraw_top_p)
        return kept(logits[:, None], self._top_k, top_p)[:, 0]
