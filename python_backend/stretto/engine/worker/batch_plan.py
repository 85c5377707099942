"""Plan of a step: which rows are sampled, with which parameters, and in which CFG pairs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from stretto.engine.columns import COLUMNS_OFF, LIMITS, SCALES, Array, SlotLimits, SlotScales
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto.engine.worker.slots import Arrays, SlotTables

NO_ROW = -1


@dataclass(frozen=True)
class StepRows:
    """Run slots and possible segments of the B rows of a step, as known on the host, [B] each.

    Attributes:
        samples: True if the row is sampled; False for an incomplete chunk of a prompt.
        may_write: True if the row may be in a text segment.
        may_speak: True if the row may be after the text segment. Both are True if the host does not know the segment.
    """

    slots: np.ndarray
    samples: np.ndarray
    may_write: np.ndarray
    may_speak: np.ndarray

    def fingerprint(self) -> bytes:
        """Return bytes that are equal for steps with the same plan, as long as no slot gets a new request."""
        return b"".join(column.tobytes() for column in (self.slots, self.samples, self.may_write, self.may_speak))


class SolverPlan(NamedTuple):
    """Number of solver steps and guidance of a step's latents, which determine the predictor's launches.

    Attributes:
        num_steps: Largest number of solver steps of any row; 0 for families whose frames are codes.
        is_guided: True if the latent of any row is guided.
    """

    num_steps: int = 0
    is_guided: bool = False

    @classmethod
    def of_rows(cls, limits: np.ndarray, scales: np.ndarray) -> "SolverPlan":
        """Return the plan for rows with the request parameters `limits` and `scales`, [M, C] each."""
        num_steps = int(limits[:, LIMITS["latent_steps"]].max(initial=0))
        return cls(num_steps, num_steps > 0 and bool((scales[:, SCALES["guidance"]] != 1).any()))


NO_LATENTS = SolverPlan()


@dataclass(frozen=True)
class BatchPlan:
    """Plan of the rows of one step, reused while the batch stays the same. Indices are int64 on the host.

    Attributes:
        num_rows: Number of rows in the batch, B, including those of unconditional requests.
        drawing: Rows that are sampled, [M]; the P conditional rows of CFG pairs come first.
        sampling: `drawing`, followed by the P unconditional rows, [M + P].
        num_paired: Number of CFG pairs, P. Their conditional rows also come first in `speaking`.
        writing: Indices into `drawing` of rows that may be in a text segment, [W]; None for all.
        speaking: Indices into `drawing` of rows that may be after the text segment, [A]; None for all.
        text, audio, depth: Sampling methods for text ids, for stream 0 in audio, and for the other streams.
        ras_window: Maximum window of repetition-aware sampling among the rows.
        used: Names of the options in `NUMBER_OPTIONS` that have an effect on any row.
        has_delayed_tail: True if any reply continues audio in its prompt.
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
    used: frozenset[str]
    has_delayed_tail: bool
    solver: SolverPlan

    @property
    def may_write(self) -> bool:
        return self.writing is None or len(self.writing) > 0

    @property
    def may_speak(self) -> bool:
        return self.speaking is None or len(self.speaking) > 0


def plan_batch(rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray, tables: SlotTables) -> BatchPlan:
    """Return the plan of a step.

    Args:
        partner: Slot of each slot's CFG partner, int64 [R]; negative for none.
    """
    row_of = np.full(len(partner) + 1, NO_ROW)  # the last entry is for slots without a partner
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
            return DrawPlan.from_parameters(temperature, top_p)

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
        ras_window=int(scales[:, SCALES["ras_window"]].max(initial=0)),
        used=frozenset(name for name, off in COLUMNS_OFF.items() if (scales[:, SCALES[name]] != off).any()),
        has_delayed_tail=bool(limits[:, LIMITS["forced_until"]].any()),
        solver=SolverPlan.of_rows(limits, scales),
    )


@dataclass(frozen=True)
class PlanArrays:
    """Arrays of a `BatchPlan` on the step's device; indices are None if they would select all rows in order.

    Attributes:
        sampling: Rows of the batch, [M + P].
        slots: Slots of these rows, [M + P].
        limits, scales: Parameters of the rows in `drawing`, [M] each.
        text_rows: Rows of the batch whose hidden states the text head needs, [W].
        audio_rows: Rows of the batch whose hidden states the audio heads need, [A + P]; unconditional rows are last.
        guidance: Guidance scales, float32 [P].
        num_sampled: 1 for each row of the batch that is sampled, else 0, int32 [B].
    """

    sampling: Array | None
    slots: Array
    limits: SlotLimits
    scales: SlotScales
    writing: Array | None
    speaking: Array | None
    text_rows: torch.Tensor | None
    audio_rows: torch.Tensor | None
    text: DrawParams
    audio: DrawParams
    depth: DrawParams
    guidance: torch.Tensor
    num_sampled: torch.Tensor

    @classmethod
    def from_plan(cls, plan: BatchPlan, rows: StepRows, tables: SlotTables, arrays: Arrays) -> "PlanArrays":
        """Upload the arrays of `plan`."""
        slots = rows.slots[plan.sampling]
        drawing = slots[: len(plan.drawing)]
        limits = SlotLimits(*arrays.upload(np.ascontiguousarray(tables.limits[drawing].T)))
        scales = SlotScales.from_columns(arrays.upload(np.ascontiguousarray(tables.scales[drawing].T)))
        writing, speaking = (
            index if index is None else arrays.upload(index) for index in (plan.writing, plan.speaking)
        )

        def hidden_rows(index: np.ndarray) -> torch.Tensor | None:
            is_all = len(index) == plan.num_rows and bool((index == np.arange(plan.num_rows)).all())
            return None if is_all else arrays.tensor(arrays.upload(index))

        def params(index: Array | None, *columns: Array) -> DrawParams:
            return DrawParams(*(arrays.tensor(pick(column, index)) for column in columns))

        others = plan.sampling[len(plan.drawing) :]
        return cls(
            sampling=None if hidden_rows(plan.sampling) is None else arrays.upload(plan.sampling),
            slots=arrays.upload(slots),
            limits=limits,
            scales=scales,
            writing=writing,
            speaking=speaking,
            text_rows=hidden_rows(pick(plan.drawing, plan.writing)),
            audio_rows=hidden_rows(np.concatenate([pick(plan.drawing, plan.speaking), others])),
            text=params(writing, scales.text_temperature, limits.text_top_k, scales.text_top_p),
            audio=params(speaking, scales.audio_temperature, limits.audio_top_k, scales.audio_top_p),
            depth=params(speaking, scales.depth_temperature, limits.depth_top_k, scales.depth_top_p),
            guidance=arrays.tensor(scales.guidance[: plan.num_paired]),
            num_sampled=arrays.tensor(arrays.upload(rows.samples.astype(np.int32))),
        )


def pick(values: Array, index: Array | None) -> Array:
    """Return the values at `index`, or all values if `index` is None."""
    return values if index is None else values[index]


class BatchPlanner:
    """Planner that reuses the plan and its uploaded arrays while the batch stays the same."""

    def __init__(self, tables: SlotTables, arrays: Arrays):
        self._tables = tables
        self._arrays = arrays
        self._fingerprint = b""

    def forget(self) -> None:
        """Discard the plan, because a slot has a new request or new parameters."""
        self._fingerprint = b""

    def plan(self, rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray) -> tuple[BatchPlan, PlanArrays]:
        """Return the plan and its arrays for a step (see `plan_batch`)."""
        fingerprint = rows.fingerprint()
        if fingerprint != self._fingerprint:
            plan = plan_batch(rows, partner, is_unconditional, self._tables)
            self._plan = plan, PlanArrays.from_plan(plan, rows, self._tables, self._arrays)
            self._fingerprint = fingerprint
        return self._plan
