"""Assignment of requests and CFG pairs to run slots, and the host's knowledge of their segments."""

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.protocol import NewText, SpeechParams, SpeechRequestData, partner_of
from stretto.engine.reply_rules import SegmentRules, SegmentTracker
from stretto.engine.worker.batch import BatchPlan, BatchPlanner, PlanArrays, StepRows
from stretto.engine.worker.slots import LIMITS, STATE, Arrays, SlotTables
from stretto.families.base import BurstSchedule
from stretto.streams.layout import Segment

PREFIXES = ("_warmup_", "_v2_mixed_warmup_")
_ordinals = itertools.count()


def is_warm_up(request_id: str) -> bool:
    """Return True for requests that vLLM creates for its warm-up, which take one token per step."""
    return request_id.startswith(PREFIXES)


def warmup_request(data: NewRequestData, rules: SegmentRules) -> tuple[SpeechParams, np.ndarray]:
    """Return parameters and ids of streams 1 to S - 1 [n, S - 1] for a warm-up request; they cycle through the tasks.

    Raises:
        TypeError: If the request is not a warm-up request and did not come through `SpeechLLM`.
    """
    if not is_warm_up(data.req_id):
        raise TypeError(f"{data.req_id} did not come through SpeechLLM: it has no speech parameters")
    family = rules.family
    task = family.tasks[next(_ordinals) % len(family.tasks)]
    sampling = replace(task.sampling, seed=0, guidance_scale=1.0, text=replace(task.sampling.text, max_rows=1))
    num_rows = len(data.prefill_token_ids or ())
    codes = np.full((num_rows, family.layout.num_input_streams - 1), family.layout.pad_id, np.int32)
    return SpeechParams(task.name, sampling, codes), codes


UNKNOWN = -1


class HostReadback:
    """Segment state of the slots on the CPU, read directly from the table."""

    is_exact = True

    def __init__(self, tables: SlotTables):
        self._audio_start = tables.state.numpy()[:, STATE["audio_start"]]

    def audio_starts(self) -> np.ndarray:
        """Return the position of the first audio row by slot, int64 [R]; negative while unknown."""
        return self._audio_start

    def place(self, slot: int, audio_start: int) -> None:
        """Do nothing: the table contains the position."""

    def publish(self) -> None:
        """Do nothing: the table is up to date."""


class DeviceReadback:
    """Segment state of the slots on a GPU: the host reads asynchronous copies of the table, `lag` steps later.

    `lag` is the maximum number of steps in flight. When a step is launched, the step `lag` steps before it has ended,
    because its output has been used. The host therefore never waits, and all ranks of a tensor-parallel group have the
    same knowledge at the same step. An old copy stays valid, because a segment never changes from audio back to text.
    """

    is_exact = False

    def __init__(self, tables: SlotTables, lag: int):
        self._state, self._lag = tables.state, lag
        num_slots = len(tables.state)
        self._known = np.full(num_slots, UNKNOWN, np.int64)
        self._tenant = np.zeros(num_slots, np.int64)  # number of requests that each slot has had
        self._step = 0
        self._copies: deque[_Copy] = deque()
        self._spare = [_Copy(num_slots) for _ in range(lag + 1)]

    def audio_starts(self) -> np.ndarray:
        """Return the positions of the first audio rows as of `lag` steps ago, [R]; call this once per step."""
        self._step += 1
        while self._copies and self._copies[0].step <= self._step - self._lag:
            copy = self._copies.popleft()
            copy.event.synchronize()
            is_same = copy.tenant == self._tenant
            self._known[is_same] = np.maximum(self._known, copy.audio_start)[is_same]
            self._spare.append(copy)
        return self._known

    def place(self, slot: int, audio_start: int) -> None:
        """Record the position for a request that was assigned to `slot`."""
        self._tenant[slot] += 1
        self._known[slot] = audio_start

    def publish(self) -> None:
        """Start a copy of the table after the launched step; not needed after steps in which no text can have ended."""
        copy = self._spare.pop()
        copy.step = self._step
        copy.tensor.copy_(self._state[:, STATE["audio_start"]], non_blocking=True)
        copy.event.record()
        copy.tenant[:] = self._tenant
        self._copies.append(copy)


class _Copy:
    """Pinned host copy of the column `audio_start` [R], with the step and the slots' occupants that it belongs to."""

    def __init__(self, num_slots: int):
        self.tensor = torch.zeros(num_slots, dtype=torch.int64, pin_memory=torch.cuda.is_available())
        self.audio_start = self.tensor.numpy()
        self.tenant = np.zeros(num_slots, np.int64)
        self.step = 0
        self.event = torch.cuda.Event()


def readback_of(tables: SlotTables, arrays: Arrays, lag: int) -> HostReadback | DeviceReadback:
    """Return the readback of `tables` for their device, with at most `lag` steps in flight."""
    return HostReadback(tables) if arrays.xp is np else DeviceReadback(tables, lag)


NO_SLOT = -1


class RunSlots:
    """Run slots: the requests in them, their tables, and the host's knowledge of their segments.

    Args:
        tables: Slot tables.
        rules: Rules of the family's replies.
        arrays: Array factory.
        lag: Maximum number of steps in flight.

    Attributes:
        partner: Slot of the CFG partner by slot, int64 [R]; `NO_SLOT` for none.
        is_unconditional: True for unconditional requests, bool [R].
        slot_of: Slot by request id.
        version: Number that changes whenever a slot gets a new request or new parameters.
        is_read_by_modules: True if MCTP modules process the request's rows, bool [R].
    """

    def __init__(self, tables: SlotTables, rules: SegmentRules, arrays: Arrays, lag: int):
        self.tables, self.rules, self.arrays = tables, rules, arrays
        self.readback = readback_of(tables, arrays, lag)
        self.num_slots = len(tables.state)
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
        """Assign a request to `slot`; after a preemption it continues at its current position."""
        params, codes, token_ids = data.params, data.codes, data.prefill_token_ids
        assert params is not None
        assert codes is not None
        assert token_ids is not None
        tracker = SegmentTracker(self.rules, self.rules.family.task(params.task), data.prompt_len)
        if not params.is_unconditional:  # the conditional request's slot holds the position of the pair
            for token_id in token_ids[data.prompt_len :]:
                tracker.push(token_id)
        first = data.prompt_len if self.rules.family.penalized == "drawn" else 0
        self.tables.stage(slot, params, tracker, codes, token_ids[first:], data.track)
        self.readback.place(slot, tracker.audio_start)
        self._num_prompt_rows[slot] = data.prompt_len
        schedule = self._schedules[slot] = None if is_warm_up(data.req_id) else self.rules.schedule(params.sampling)
        self.is_read_by_modules[slot] = schedule is not None and schedule.max_extra > 0
        self._link(data.req_id, slot, params.is_unconditional)

    def extend_texts(self, new_text: Mapping[str, NewText]) -> None:
        """Write streamed text and live audio that have arrived, by request id.

        Preempted requests get them when they are scheduled again.
        """
        slots = {self.slot_of[request_id]: each for request_id, each in new_text.items() if request_id in self.slot_of}
        streams = self.rules.family.track_streams
        self.tables.extend(slots, slice(streams.start - 1, streams.stop - 1), self.arrays)
        if any(each.min_rows is not None or each.max_text_rows is not None for each in slots.values()):
            self._change()

    def _link(self, request_id: str, slot: int, is_unconditional: bool) -> None:
        self._change()
        self.slot_of[request_id] = slot
        self.is_unconditional[slot] = is_unconditional
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
            place: Index of these rows among those that the step generates.
        """
        return self._planners[place].plan(rows, self.partner, self.is_unconditional)

    def num_extra(self, rows: StepRows, num_read: np.ndarray) -> np.ndarray:
        """Return the number of rows that modules generate in this step, int64 [B].

        An unconditional request generates as many as its partner.

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
        """Return the host's knowledge of the rows one position later in the same step.

        Args:
            rows: Rows of this position.
            samples: True for requests that sample the next row, bool [B].
        """
        if not self.readback.is_exact:
            return replace(rows, samples=samples)
        may_write = self.readback.audio_starts()[rows.slots] < 0
        return StepRows(rows.slots, samples, may_write, ~may_write)

    def rows(self, batch: InputBatch) -> StepRows:
        """Return the host's knowledge of the rows of `batch`; incomplete prompt chunks are not sampled."""
        slots = batch.idx_mapping_np
        audio_start = self.readback.audio_starts()[slots]
        may_write = audio_start < 0
        if self.readback.is_exact:
            may_speak = ~may_write
        else:
            may_speak = ~may_write | self._speaks[self.tables.limits[slots, LIMITS["task"]]]
        samples = batch.num_computed_tokens_np + batch.num_scheduled_tokens >= batch.prefill_len_np
        return StepRows(slots, samples, may_write, may_speak)
