"""Assignment of requests and CFG pairs to run slots, and the requests' segments as known on the host.

The module also plans each step on the host: which rows are sampled, their CFG pairs, and the sampling methods needed.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.protocol import is_unconditional, partner_of
from stretto.engine.reply_rules import UNKNOWN, ReplyState, SegmentRules
from stretto.engine.rules import is_entry
from stretto.engine.step_records import NewText, SpeechRequestData
from stretto.engine.worker.slots import LIMITS, SCALES, STATE, Array, Arrays, SlotLimits, SlotScales, SlotTables
from stretto.families.bursts import BurstSchedule
from stretto.records.prompt import Prompt
from stretto.sampling import DrawParams, DrawPlan
from stretto.streams.layout import Segment

NO_ROW = -1


@dataclass(frozen=True)
class StepRows:
    """Properties of the B rows of a step that the host knows, [B] each.

    Attributes:
        slots: Run slots, int.
        samples: True if the row is sampled; False for an incomplete chunk of a prompt.
        may_write: True if the row may be in a text segment.
        may_speak: True if the row may be after the text segment. If the host does not know the segment, both
            `may_write` and `may_speak` are True.
    """

    slots: np.ndarray
    samples: np.ndarray
    may_write: np.ndarray
    may_speak: np.ndarray

    def fingerprint(self) -> bytes:
        """Return bytes that, while every slot keeps its request, are equal for steps with equal plans."""
        return b"".join(column.tobytes() for column in (self.slots, self.samples, self.may_write, self.may_speak))


class SolverPlan(NamedTuple):
    """Properties of a step's latents, known on the host, that determine the predictor's launches.

    Attributes:
        num_steps: Largest number of solver steps of any row; 0 for families whose frames are codes.
        is_guided: True if the latent of any row is guided.
    """

    num_steps: int = 0
    is_guided: bool = False

    @classmethod
    def of_rows(cls, limits: np.ndarray, scales: np.ndarray) -> "SolverPlan":
        """Return the plan for rows with the request parameters `limits` [M, 16] and `scales` [M, 10]."""
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
        text: Sampling methods needed for text ids.
        audio: Sampling methods needed for stream 0 in audio.
        depth: Sampling methods needed for the other streams.
        ras_window: Maximum window of repetition-aware sampling among the rows.
        has_min_p: True if any row uses min-p.
        has_delayed_tail: True if any reply continues audio in its prompt.
        solver: Solver steps and guidance of latents.
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
        rows: Rows of the step.
        partner: Slot of the CFG partner by slot, int64 [R]; negative for none.
        is_unconditional: True for slots of unconditional requests, bool [R].
        tables: Slot tables with the request parameters.
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
            return DrawPlan.from_parameters(temperature, limits[index, LIMITS[f"{name}_top_k"]], top_p)

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
        solver=SolverPlan.of_rows(limits, scales),
    )


@dataclass(frozen=True)
class PlanArrays:
    """Arrays of a plan on the step's device; indices are None if they would select all rows in order.

    Attributes:
        sampling: Rows of the batch, [M + P].
        slots: Slots of these rows, [M + P].
        limits: Integer parameters of the rows in `drawing`, [M] each.
        scales: Real parameters of the rows in `drawing`, [M] each.
        writing: Indices into `drawing` of rows that may be in a text segment, [W].
        speaking: Indices into `drawing` of rows that may be after the text segment, [A].
        text_rows: Rows of the batch whose hidden states the text head needs, [W].
        audio_rows: Rows of the batch whose hidden states the audio heads need, [A + P]; unconditional rows are last.
        text: Sampling parameters of text ids.
        audio: Sampling parameters of stream 0 in audio.
        depth: Sampling parameters of the other streams.
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
        """Upload the arrays of `plan`.

        Args:
            plan: Plan of the step.
            rows: Rows of the step.
            tables: Slot tables with the request parameters.
            arrays: Array factory of the device.
        """
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

        def params(
            index: Array | None, temperature: Array, top_k: Array, top_p: Array, of_all: bool = tables.top_p_of_all
        ) -> DrawParams:
            columns = (temperature, top_k, top_p)
            temperatures, counts, masses = (arrays.tensor(c if index is None else c[index]) for c in columns)
            return DrawParams(temperatures, counts, masses, of_all=of_all)

        others = plan.sampling[len(plan.drawing) :]
        return cls(
            sampling=None if hidden_rows(plan.sampling) is None else arrays.upload(plan.sampling),
            slots=arrays.upload(slots),
            limits=limits,
            scales=scales,
            writing=writing,
            speaking=speaking,
            text_rows=hidden_rows(_take(plan.drawing, plan.writing)),
            audio_rows=hidden_rows(np.concatenate([_take(plan.drawing, plan.speaking), others])),
            text=params(writing, scales.text_temperature, limits.text_top_k, scales.text_top_p, of_all=False),
            audio=params(speaking, scales.audio_temperature, limits.audio_top_k, scales.audio_top_p),
            depth=params(speaking, scales.depth_temperature, limits.depth_top_k, scales.depth_top_p),
            guidance=arrays.tensor(scales.guidance[: plan.num_paired]),
            num_sampled=arrays.tensor(arrays.upload(rows.samples.astype(np.int32))),
        )


def _take(rows: np.ndarray, index: np.ndarray | None) -> np.ndarray:
    return rows if index is None else rows[index]


class BatchPlanner:
    """Planner that reuses the plan and its uploaded arrays while the batch stays the same."""

    def __init__(self, tables: SlotTables, arrays: Arrays):
        self._tables, self._arrays = tables, arrays
        self._fingerprint = b""

    def forget(self) -> None:
        """Discard the plan, because a slot has a new request or new parameters."""
        self._fingerprint = b""

    def plan(self, rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray) -> tuple[BatchPlan, PlanArrays]:
        """Return the plan and its arrays for a step; see `plan_batch`."""
        fingerprint = rows.fingerprint()
        if fingerprint != self._fingerprint:
            plan = plan_batch(rows, partner, is_unconditional, self._tables)
            self._plan = plan, PlanArrays.from_plan(plan, rows, self._tables, self._arrays)
            self._fingerprint = fingerprint
        return self._plan


STEPS_AHEAD = 16


class KeysAhead:
    """Noise keys of sampled rows, computed for STEPS_AHEAD steps in one pass.

    They are computed again earlier if other rows are sampled.

    Args:
        make: Function of seed keys [M] and positions [M], both int32, that returns noise keys, int32 [M, S].
    """

    def __init__(self, make: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self._make = make
        self._plan: BatchPlan | None = None
        self._positions, self._keys = np.zeros((0, 0), np.int32), np.zeros((0, 0, 0), np.int32)
        self._step = 0

    def keys(self, plan: BatchPlan, seed_keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the noise keys of a step, int32 [M, S].

        Args:
            plan: Plan of the step. It is the same object while the same rows are sampled.
            seed_keys: Keys of the requests' seeds, int32 [M].
            positions: Positions of the rows, int32 [M].
        """
        is_next = plan is self._plan and np.array_equal(positions, self._positions + self._step)
        if is_next and self._step < len(self._keys):
            keys = self._keys[self._step]
        else:
            num_steps = STEPS_AHEAD if is_next else 1
            ahead = (positions + np.arange(num_steps, dtype=np.int32)[:, None]).reshape(-1)
            self._keys = self._make(np.tile(seed_keys, num_steps), ahead).reshape(num_steps, len(positions), -1)
            self._plan, self._positions, self._step, keys = plan, positions, 0, self._keys[0]
        self._step += 1
        return keys


PREFIXES = ("_warmup_", "_v2_mixed_warmup_")
_ordinals = itertools.count()


def is_warm_up(request_id: str) -> bool:
    """Return True for requests that vLLM creates for its warm-up, which take one token per step."""
    return request_id.startswith(PREFIXES)


def warmup_request(data: NewRequestData, rules: SegmentRules) -> tuple[Prompt, np.ndarray]:
    """Return a prompt and the ids of streams 1 to S - 1 [n, S - 1] for a warm-up request.

    Successive requests use the family's tasks in turn.

    Raises:
        TypeError: If the request is not a warm-up request and did not come through `SpeechLLM`.
    """
    if not is_warm_up(data.req_id):
        raise TypeError(f"{data.req_id} did not come through SpeechLLM: it has no prompt")
    family = rules.family
    task = family.tasks[next(_ordinals) % len(family.tasks)]
    sampling = replace(task.sampling, seed=0, guidance_scale=1.0, text=replace(task.sampling.text, max_rows=1))
    num_rows = len(data.prefill_token_ids or ())
    codes = np.full((num_rows, family.layout.num_input_streams - 1), family.layout.pad_id, np.int32)
    rows = np.column_stack([np.asarray(data.prefill_token_ids or (), np.int32), codes])
    return Prompt(task.name, rows, sampling), codes


NO_SLOT = -1


class RunSlots:
    """Run slots: their requests, tables, and segments as known on the host.

    Args:
        tables: Slot tables.
        rules: Rules of the family's replies.
        arrays: Array factory.

    Attributes:
        is_exact: True if the host reads the state of the replies from the tables, because steps run on the CPU.
        partner: Slot of the CFG partner by slot, int64 [R]; `NO_SLOT` for none.
        is_unconditional: True for unconditional requests, bool [R].
        slot_of: Slots, keyed by request id.
        version: Number that changes whenever a slot gets a new request or new parameters.
        is_read_by_modules: True if MCTP modules process the request's rows, bool [R].
    """

    def __init__(self, tables: SlotTables, rules: SegmentRules, arrays: Arrays):
        self.tables, self.rules, self.arrays = tables, rules, arrays
        self.num_slots, self.is_exact = len(tables.state), arrays.xp is np
        column = STATE["audio_start"]
        # A family without text has no text head, which vLLM's profiling run must not read for its unused slots either.
        unused = UNKNOWN if rules.num_text_ids else 0
        self._audio_start = (
            tables.state.numpy()[:, column] if self.is_exact else np.full(self.num_slots, unused, np.int64)
        )
        self.partner = np.full(self.num_slots, NO_SLOT, np.int64)
        self.is_unconditional = np.zeros(self.num_slots, np.bool_)
        self.slot_of: dict[str, int] = {}
        self.version = 0
        self._planners = [BatchPlanner(tables, arrays) for _ in range(rules.max_rows_per_step)]
        self._num_prompt_rows = np.zeros(self.num_slots, np.int64)
        self._schedules: list[BurstSchedule | None] = [None] * (self.num_slots + 1)  # the last entry is a dummy
        self.is_read_by_modules = np.zeros(self.num_slots, np.bool_)
        self._speaks = np.array([Segment.AUDIO in task.segments for task in rules.family.tasks])

    def fill(self, slot: int, data: SpeechRequestData) -> None:
        """Assign a request to `slot`; a preempted request continues from its last state."""
        prompt, codes, token_ids = data.prompt, data.codes, data.prefill_token_ids
        assert prompt is not None
        assert codes is not None
        assert token_ids is not None
        reply = ReplyState.begin(self.rules, self.rules.family.task(prompt.task), data.prompt_len, data.track)
        if data.state:
            reply.move(len(token_ids), data.state)
        text = token_ids[data.prompt_len :][: reply.num_text_tokens] if self.rules.max_entries else ()
        entries = [token for token in text if is_entry(token, self.rules.constants)]
        first = data.prompt_len if self.rules.family.drawing.penalized == "drawn" else 0
        self.tables.stage(slot, prompt, reply, codes, token_ids[first:], data.track, entries)
        self._audio_start[slot] = reply.audio_start
        self._num_prompt_rows[slot] = data.prompt_len
        schedule = self._schedules[slot] = None if is_warm_up(data.req_id) else self.rules.schedule(prompt.sampling)
        self.is_read_by_modules[slot] = schedule is not None and schedule.max_extra > 0
        self._link(data.req_id, slot)

    def extend_texts(self, new_text: Mapping[str, NewText]) -> None:
        """Write newly arrived streamed text and live audio, keyed by request id.

        Preempted requests receive their new ids when they are scheduled again.
        """
        slots = {self.slot_of[request_id]: each for request_id, each in new_text.items() if request_id in self.slot_of}
        streams = self.rules.family.track_streams
        self.tables.extend(slots, slice(streams.start - 1, streams.stop - 1), self.arrays)
        if any(each.limits for each in slots.values()):
            self._change()

    def note_audio(self, audio_starts: Mapping[str, int]) -> None:
        """Record the positions of the first audio rows of replies whose text has ended, keyed by request id.

        On a GPU, the host has this information from the scheduler, and therefore later by the steps in flight. All
        ranks of a tensor-parallel group have it in the same step.
        """
        for request_id, audio_start in audio_starts.items():
            if request_id in self.slot_of:
                self._audio_start[self.slot_of[request_id]] = audio_start

    def _link(self, request_id: str, slot: int) -> None:
        self._change()
        self.slot_of[request_id] = slot
        self.is_unconditional[slot] = is_unconditional(request_id)
        partner = self.slot_of.get(partner_of(request_id), NO_SLOT)
        self.partner[slot] = partner
        if partner != NO_SLOT:
            self.partner[partner] = slot

    def _change(self) -> None:
        self.version += 1
        for planner in self._planners:
            planner.forget()

    def empty(self, request_id: str) -> int:
        """Remove a request and return its slot, or `NO_SLOT` if it has none."""
        slot = self.slot_of.pop(request_id, NO_SLOT)
        if slot != NO_SLOT:
            self._change()
            partner = self.partner[slot]
            if partner != NO_SLOT:
                self.partner[partner] = self.partner[slot] = NO_SLOT
        return slot

    def plan(self, rows: StepRows, place: int = 0) -> tuple[BatchPlan, PlanArrays]:
        """Return the plan and its arrays for the rows of a step.

        Args:
            rows: Rows to sample.
            place: Index of these rows among the rows that the step generates.
        """
        return self._planners[place].plan(rows, self.partner, self.is_unconditional)

    def num_extra(self, rows: StepRows, num_read: np.ndarray) -> np.ndarray:
        """Return the number of rows that modules generate in this step, int64 [B].

        An unconditional request generates as many rows as its partner.

        Args:
            rows: First rows of the step.
            num_read: Number of computed rows of each request, [B].
        """
        slots = np.where(self.is_unconditional[rows.slots], self.partner[rows.slots], rows.slots)
        extra = np.zeros(len(slots), np.int64)
        for row in np.flatnonzero(rows.samples):
            schedule, num_prompt_rows = self._schedules[slots[row]], int(self._num_prompt_rows[slots[row]])
            extra[row] = self.rules.num_extra(schedule, num_prompt_rows, int(num_read[row]))
        return extra

    def rows_after(self, rows: StepRows, samples: np.ndarray) -> StepRows:
        """Return the properties of the rows one position later in the same step.

        Args:
            rows: Rows of this position.
            samples: True for requests that sample the next row, bool [B].
        """
        if not self.is_exact:
            return replace(rows, samples=samples)
        may_write = self._audio_start[rows.slots] < 0
        return StepRows(rows.slots, samples, may_write, ~may_write)

    def rows(self, batch: InputBatch) -> StepRows:
        """Return the known properties of the rows in `batch`; incomplete prompt chunks are not sampled."""
        slots = batch.idx_mapping_np
        may_write = self._audio_start[slots] < 0
        if self.is_exact:
            may_speak = ~may_write
        else:
            may_speak = ~may_write | self._speaks[self.tables.limits[slots, LIMITS["task"]]]
        samples = batch.num_computed_tokens_np + batch.num_scheduled_tokens >= batch.prefill_len_np
        return StepRows(slots, samples, may_write, may_speak)
