"""Assignment of requests to run slots, CFG pairs among them, and the plan of a batch.

Nothing here is authoritative: after a preemption the scheduler sends what a slot needs (`SpeechRequestData`).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.request.new_request import SpeechRequestData, TextNews
from stretto.engine.request.pairs import partner_of
from stretto.engine.request.rules import SegmentRules
from stretto.engine.request.tracker import SegmentTracker
from stretto.engine.worker.arrays import Arrays
from stretto.engine.worker.batch import BatchPlan, BatchPlanner, PlanArrays, StepRows
from stretto.engine.worker.segment_readback import readback_of
from stretto.engine.worker.slots import LIMITS, SlotTables
from stretto.engine.worker.warm_up import is_warm_up
from stretto.families.bursts import BurstSchedule
from stretto.streams.segment import Segment

NO_SLOT = -1


class RunSlots:
    """Slot tables with the requests in them and the host's knowledge of their segments.

    Attributes:
        partner: Slot of the CFG partner, int64 [R], `NO_SLOT` for none.
        is_unconditional: True for unconditional requests, bool [R].
        is_read_by_modules: True if MCTP modules process the rows, bool [R].
        version: Number that changes whenever a slot changes its request.
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
        """Assign a request to `slot`, at its beginning or, after a preemption, at its current position."""
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

    def extend_texts(self, news: Mapping[str, TextNews]) -> None:
        """Write streamed text that has arrived for requests with a slot; others get it when scheduled."""
        track = self.rules.family.text_track
        assert track is not None
        for request_id, each in news.items():
            slot = self.slot_of.get(request_id)
            if slot is not None:
                self.tables.extend(slot, track.stream - 1, each, self.arrays)
                if each.min_rows is not None:
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
        """Return the plan of `rows`; `place` is the number of rows generated before in this step."""
        return self._planners[place].plan(rows, self.partner, self.is_unconditional)

    def num_extra(self, rows: StepRows, num_read: np.ndarray) -> np.ndarray:
        """Return the number of rows that modules generate per request in this step, [B].

        An unconditional request generates as many as its partner. `num_read` [B] counts the computed rows.
        """
        slots = np.where(self.is_unconditional[rows.slots], self.partner[rows.slots], rows.slots)
        extra = np.zeros(len(slots), np.int64)
        for row in np.flatnonzero(rows.samples):
            schedule, num_prompt_rows = self._schedules[slots[row]], int(self._num_prompt_rows[slots[row]])
            extra[row] = self.rules.num_extra(schedule, num_prompt_rows, int(num_read[row]))
        return extra

    def rows_behind(self, rows: StepRows, says: np.ndarray) -> StepRows:
        """Return the host's knowledge of `rows` after another row of each; `says` [B] marks those with one more."""
        if not self.readback.is_exact:
            return replace(rows, samples=says)
        may_write = self.readback.audio_starts()[rows.slots] < 0
        return StepRows(rows.slots, says, may_write, ~may_write)

    def rows(self, batch: InputBatch) -> StepRows:
        """Return the host's knowledge of the rows of `batch`; an incomplete prompt chunk samples nothing."""
        slots = batch.idx_mapping_np
        audio_start = self.readback.audio_starts()[slots]
        may_write = audio_start < 0
        if self.readback.is_exact:
            may_speak = ~may_write
        else:
            may_speak = ~may_write | self._speaks[self.tables.limits[slots, LIMITS["task"]]]
        samples = batch.num_computed_tokens_np + batch.num_scheduled_tokens >= batch.prefill_len_np
        return StepRows(slots, samples, may_write, may_speak)
