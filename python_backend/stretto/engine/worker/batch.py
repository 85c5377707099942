"""Which rows of a batch draw, which are halves of which pairs, and what any of them may need: known on the host."""

from dataclasses import dataclass

import numpy as np
import torch

from stretto.engine.worker.arrays import Array, Arrays
from stretto.engine.worker.slots import LIMITS, SCALES, SlotLimits, SlotScales, SlotTables
from stretto.sampling.draw import DrawParams, DrawPlan

NO_ROW = -1


@dataclass(frozen=True)
class StepRows:
    """What the host knows of the B rows of a step, [B] each: their slots, whether each samples, and what they may be.

    may_write, may_speak: whether a row may be in a text segment, or beyond it. Certain rows are one of both.
    """

    slots: np.ndarray
    samples: np.ndarray
    may_write: np.ndarray
    may_speak: np.ndarray

    def fingerprint(self) -> bytes:
        """The same for steps that have the same plan, as long as no slot changes hands."""
        return b"".join(column.tobytes() for column in (self.slots, self.samples, self.may_write, self.may_speak))


@dataclass(frozen=True)
class BatchPlan:
    """The rows of one step; indices are int64 on the host. It stays as it is while the batch does.

    num_rows: B, both halves counted. drawing [M]: rows that draw, the P conditional halves of pairs before others.
    sampling [M + P]: behind them their unconditional halves. writing [W], speaking [A]: which of the M rows may be in
    a text segment and which beyond it, None for all of them; num_paired: P, the first of `speaking` too.
    ras_window: the longest window in which a row looks for repeats. has_min_p: whether a row leaves unlikely ids out.
    has_delayed_tail: whether a reply goes on with audio of its prompt.
    """

    num_rows: int
    drawing: np.ndarray
    sampling: np.ndarray
    num_paired: int
    writing: np.ndarray | None
    speaking: np.ndarray | None
    text: DrawPlan
    audio: DrawPlan
    depth: DrawPlan
    ras_window: int
    has_min_p: bool
    has_delayed_tail: bool

    @property
    def may_write(self) -> bool:
        return self.writing is None or len(self.writing) > 0

    @property
    def may_speak(self) -> bool:
        return self.speaking is None or len(self.speaking) > 0


def plan_batch(rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray, tables: SlotTables) -> BatchPlan:
    """The plan for a batch; `partner` (negative: none) and `is_unconditional` are by slot."""
    row_of = np.full(len(partner) + 1, NO_ROW)  # the last entry answers for a slot without a partner
    row_of[rows.slots[rows.samples]] = np.flatnonzero(rows.samples)
    drawing = np.flatnonzero(rows.samples & ~is_unconditional[rows.slots])
    others = row_of[partner[rows.slots[drawing]]]
    is_paired = others != NO_ROW
    drawing = np.concatenate([drawing[is_paired], drawing[~is_paired]])
    others = others[is_paired]
    limits, scales = (table[rows.slots[drawing]] for table in (tables.limits, tables.scales))

    def subset(may: np.ndarray, *names: str) -> tuple[np.ndarray | None, list[DrawPlan]]:
        index = np.flatnonzero(may[drawing])

        def plan(name: str) -> DrawPlan:
            temperature, top_p = (scales[index, SCALES[f"{name}_{what}"]] for what in ("temperature", "top_p"))
            return DrawPlan.of(temperature, limits[index, LIMITS[f"{name}_top_k"]], top_p)

        return (None if len(index) == len(drawing) else index), [plan(name) for name in names]

    may_speak = rows.may_speak.copy()
    may_speak[drawing[: len(others)]] = True
    writing, (text,) = subset(rows.may_write, "text")
    speaking, (audio, depth) = subset(may_speak, "audio", "depth")
    sampling = np.concatenate([drawing, others])
    return BatchPlan(
        num_rows=len(rows.slots),
        drawing=drawing,
        sampling=sampling,
        num_paired=len(others),
        writing=writing,
        speaking=speaking,
        text=text,
        audio=audio,
        depth=depth,
        ras_window=int(limits[:, LIMITS["ras_window"]].max(initial=0)),
        has_min_p=bool(np.isfinite(scales[:, SCALES["audio_span"]]).any()),
        has_delayed_tail=bool(limits[:, LIMITS["forced_until"]].any()),
    )


@dataclass(frozen=True)
class PlanArrays:
    """What a step needs of its plan, on the step's side; indices are None where they would be all rows in order.

    sampling [M + P] rows of the batch, slots [M + P] theirs; limits, scales [M]; writing [W] and speaking [A] of M.
    written, heard: tensors, the rows of the batch whose hidden states the heads need: the W that may write; the A
    that may speak and behind them the P other halves. guidance: tensor [P] float32. num_sampled: tensor [B] int32.
    """

    sampling: Array | None
    slots: Array
    limits: SlotLimits
    scales: SlotScales
    writing: Array | None
    speaking: Array | None
    written: torch.Tensor | None
    heard: torch.Tensor | None
    text: DrawParams
    audio: DrawParams
    depth: DrawParams
    guidance: torch.Tensor
    num_sampled: torch.Tensor

    @classmethod
    def of(cls, plan: BatchPlan, rows: StepRows, tables: SlotTables, arrays: Arrays) -> "PlanArrays":
        """The arrays of `plan`, uploaded."""
        slots = rows.slots[plan.sampling]
        drawing = slots[: len(plan.drawing)]
        limits = SlotLimits(*arrays.upload(np.ascontiguousarray(tables.limits[drawing].T)))
        scales = SlotScales(*arrays.upload(np.ascontiguousarray(tables.scales[drawing].T)))
        writing, speaking = (
            index if index is None else arrays.upload(index) for index in (plan.writing, plan.speaking)
        )

        def hidden_rows(index: np.ndarray) -> torch.Tensor | None:
            is_all = len(index) == plan.num_rows and bool((index == np.arange(plan.num_rows)).all())
            return None if is_all else arrays.tensor(arrays.upload(index))

        def params(index: Array | None, *columns: Array) -> DrawParams:
            return DrawParams(*(arrays.tensor(c if index is None else c[index]) for c in columns))

        others = plan.sampling[len(plan.drawing) :]
        return cls(
            sampling=None if hidden_rows(plan.sampling) is None else arrays.upload(plan.sampling),
            slots=arrays.upload(slots),
            limits=limits,
            scales=scales,
            writing=writing,
            speaking=speaking,
            written=hidden_rows(_take(plan.drawing, plan.writing)),
            heard=hidden_rows(np.concatenate([_take(plan.drawing, plan.speaking), others])),
            text=params(writing, scales.text_temperature, limits.text_top_k, scales.text_top_p),
            audio=params(speaking, scales.audio_temperature, limits.audio_top_k, scales.audio_top_p),
            depth=params(speaking, scales.depth_temperature, limits.depth_top_k, scales.depth_top_p),
            guidance=arrays.tensor(scales.guidance[: plan.num_paired]),
            num_sampled=arrays.tensor(arrays.upload(rows.samples.astype(np.int32))),
        )


def _take(rows: np.ndarray, index: np.ndarray | None) -> np.ndarray:
    return rows if index is None else rows[index]


class BatchPlanner:
    """Plans steps; while the batch stays the same it keeps the plan and its arrays."""

    def __init__(self, tables: SlotTables, arrays: Arrays):
        self._tables, self._arrays = tables, arrays
        self._fingerprint = b""

    def forget(self) -> None:
        """Plan anew: a slot has changed hands."""
        self._fingerprint = b""

    def plan(self, rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray) -> tuple[BatchPlan, PlanArrays]:
        """The plan for a batch; see `plan_batch`."""
        fingerprint = rows.fingerprint()
        if fingerprint != self._fingerprint:
            plan = plan_batch(rows, partner, is_unconditional, self._tables)
            self._plan = plan, PlanArrays.of(plan, rows, self._tables, self._arrays)
            self._fingerprint = fingerprint
        return self._plan
