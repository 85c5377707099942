"""Assignment of requests and CFG pairs to the `max_num_seqs` run slots, and their segments as known on the host."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.columns import LIMITS, STATE
from stretto.engine.protocol import is_unconditional, partner_of
from stretto.engine.reply_rules import UNKNOWN, ReplyState, SegmentRules
from stretto.engine.step_records import NewText, SpeechRequestData
from stretto.engine.worker.batch_plan import BatchPlan, BatchPlanner, PlanArrays, StepRows
from stretto.engine.worker.slots import Arrays, SlotTables
from stretto.family.mechanism import RowSchedule
from stretto.records.prompt import Prompt
from stretto.streams.layout import Segment

STEPS_AHEAD = 16


class KeysAhead:
    """Noise keys of sampled rows, computed for STEPS_AHEAD steps in one pass.

    They are computed again if the plan or a seed changes, or if the positions are not the next ones.

    Args:
        make: Function of seed keys [M] and positions [M], both int32, that returns noise keys, int32 [M, S].
    """

    def __init__(self, make: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self._make = make
        self._plan: BatchPlan | None = None
        self._positions = np.zeros((0, 0), np.int32)
        self._seed_keys = np.zeros(0, np.int32)
        self._keys = np.zeros((0, 0, 0), np.int32)
        self._step = 0

    def keys(self, plan: BatchPlan, seed_keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the noise keys of a step, int32 [M, S].

        Args:
            plan: Plan of the step. It is the same object while the same rows are sampled.
        """
        is_next = plan is self._plan and np.array_equal(positions, self._positions + self._step)
        is_next = is_next and np.array_equal(seed_keys, self._seed_keys)
        if is_next and self._step < len(self._keys):
            keys = self._keys[self._step]
        else:
            num_steps = STEPS_AHEAD if is_next else 1
            ahead = (positions + np.arange(num_steps, dtype=np.int32)[:, None]).reshape(-1)
            self._keys = self._make(np.tile(seed_keys, num_steps), ahead).reshape(num_steps, len(positions), -1)
            self._plan = plan
            self._positions = positions
            self._seed_keys = seed_keys
            self._step = 0
            keys = self._keys[0]
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
        TypeError: If `data` is not a warm-up request.
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

    Attributes:
        is_exact: True if the host reads the state of the replies from the tables, because steps run on the CPU.
        partner: Slot of the CFG partner by slot, int64 [R]; `NO_SLOT` for none.
        version: Number that changes whenever a slot gets a new request or new parameters.
        is_read_by_modules: True if modules for multi-token steps process the request's rows, bool [R].
    """

    def __init__(self, tables: SlotTables, rules: SegmentRules, arrays: Arrays):
        self.tables = tables
        self.rules = rules
        self.arrays = arrays
        self.num_slots = len(tables.state)
        self.is_exact = arrays.xp is np
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
        self._schedules: list[RowSchedule | None] = [None] * (self.num_slots + 1)  # the last entry is a dummy
        self.is_read_by_modules = np.zeros(self.num_slots, np.bool_)
        self._speaks = np.array([Segment.AUDIO in task.segments for task in rules.family.tasks])

    def fill(self, slot: int, data: SpeechRequestData) -> None:
        """Assign a request to `slot`. A preempted request continues from its last state."""
        prompt = data.prompt
        codes = data.codes
        token_ids = data.prefill_token_ids
        assert prompt is not None
        assert codes is not None
        assert token_ids is not None
        reply = ReplyState.begin(self.rules, self.rules.family.task(prompt.task), data.prompt_len, data.track)
        if data.state:
            reply.move(len(token_ids), data.state)
        text = token_ids[data.prompt_len : data.prompt_len + reply.num_text_tokens]
        entries = self.rules.family.drawing.written_entries(text)
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
        slots = {self.slot_of[request_id]: new for request_id, new in new_text.items() if request_id in self.slot_of}
        streams = self.rules.family.track_streams
        self.tables.extend(slots, slice(streams.start - 1, streams.stop - 1), self.arrays)
        if any(slot.limits for slot in slots.values()):
            self._change()

    def note_audio(self, audio_starts: Mapping[str, int]) -> None:
        """Record the positions of the first audio rows of replies whose text has ended, keyed by request id.

        On a GPU, the scheduler sends them, delayed by the steps in flight, to all tensor-parallel ranks in the same
        step.
        """
        for request_id, audio_start in audio_starts.items():
            if request_id in self.slot_of:
                self._audio_start[self.slot_of[request_id]] = audio_start

    def audio_start(self, slot: int) -> int:
        """Return the position of the first audio row of a slot's reply (negative while the host does not know it)."""
        return int(self._audio_start[slot])

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

    def plan(self, rows: StepRows, row_index: int = 0) -> tuple[BatchPlan, PlanArrays]:
        """Return the plan and its arrays for the rows of a step.

        Args:
            row_index: Index of these rows among the rows that the step generates.
        """
        return self._planners[row_index].plan(rows, self.partner, self.is_unconditional)

    def num_extra(self, rows: StepRows, num_read: np.ndarray) -> np.ndarray:
        """Return the number of rows that each request generates in this step after the first one, int64 [B].

        An unconditional request generates as many rows as its partner.
        """
        slots = np.where(self.is_unconditional[rows.slots], self.partner[rows.slots], rows.slots)
        extra = np.zeros(len(slots), np.int64)
        for row in np.flatnonzero(rows.samples):
            schedule = self._schedules[slots[row]]
            num_prompt_rows = int(self._num_prompt_rows[slots[row]])
            extra[row] = self.rules.num_extra(schedule, num_prompt_rows, int(num_read[row]))
        return extra

    def rows_after(self, rows: StepRows, samples: np.ndarray) -> StepRows:
        """Return the rows one position later in the same step, for requests that sample them (`samples`, bool [B])."""
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
