"""Sampling for families with latent frames, and states of networks that encode decoded audio."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import triton
from vllm import envs

from stretto.engine.kernels.gpu.step_latents import NO_MARK, latent_inputs_kernel
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker.predictors import LatentFeedback, LatentReadout
from stretto.engine.worker.run_slots import BatchPlan, PlanArrays, SolverPlan
from stretto.engine.worker.sampler import RepetitionGuard, RowDraw, pick
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto.engine.worker.step_program import EXACT, StepProgram, Variant
from stretto.sampling import gaussian
from stretto.streams.layout import StreamLayout, latents_of

logger = logging.getLogger(__name__)


class LatentDraw(RowDraw):
    """Samples audio rows with latents: the most probable id on stream 0, and a latent from the predictor."""

    def __init__(
        self, readout: LatentReadout, segments: SegmentState, tables: SlotTables, arrays: Arrays, guard: RepetitionGuard
    ):
        super().__init__(readout, segments, tables, arrays, guard)
        self._predict: Any = readout.latents
        layout = segments.family.layout
        self._is_guided = layout.latents is not None and layout.latents.is_guided

    def _draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the latents as words [M, D]; only rows that may be audio are set."""
        own = hidden if step.audio_rows is None else hidden[step.audio_rows]
        logits = self._segments.mask_audio(self._heads.first(own), rows, step.speaking)
        token = self._spread(self._heads.first_ids[logits.argmax(1)], step.speaking, rows)
        token = self._segments.count_down(self._segments.end_audio(token, rows), rows)
        # NumPy and GPUs round square roots correctly; torch on a CPU does not.
        deviation = self._arrays.xp.sqrt(pick(rows.scales.audio_temperature, step.speaking))
        noise = self._tensor(gaussian(keys[:, 1:])) * self._arrays.tensor(deviation)[:, None]
        steps = self._arrays.tensor(pick(rows.limits.latent_steps, step.speaking)).clamp(min=1)
        context = self._context(rows, step.speaking) if self._is_guided else ()
        words = self._predict(own, noise, steps, plan.solver, *context).contiguous().view(torch.int32)
        return token, self._spread(words, step.speaking, rows)

    def _context(self, rows: Rows, index: Array | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents [A, D] of the previous rows, and the guidance scales [A]."""
        before = self._codes[pick(rows.slots, index), pick(rows.position, index) - 1]
        before = self._arrays.tensor(before)[:, : self._num_streams - 1].contiguous()
        return before.view(torch.float32), self._arrays.tensor(pick(rows.scales.guidance, index))


MAX_ASIDE_BYTES = 256 << 20
# Number of frames that a batch-invariant GPU decodes in one batch, because convolutions choose their algorithm by batch
# size.
GROUP = 16


class Aside(NamedTuple):
    """Host copy of the feedback state of a request that has left its slot.

    Attributes:
        row: Position of the last latent that the state includes, int64 [1].
        memory: The memory, float32 [num_kept].
        copied: Event recorded after the copies from a GPU; None on a CPU.
    """

    row: torch.Tensor
    memory: torch.Tensor
    copied: torch.cuda.Event | None


class FeedbackMemory:
    """Recurrent states ("memories") of a feedback network, one per slot.

    Memories of preempted requests are saved. If a resumed request has no saved memory, the memory is recomputed from
    the latents, one latent at a time. The result is bit-identical.

    Args:
        network: The network.
        layout: Stream layout of a family with marks.
        num_slots: Number of slots.
        device: Device on which the memories are stored.

    Attributes:
        num_restored: Number of saved memories that were restored.
        num_rebuilt: Number of memories that were recomputed.
    """

    def __init__(self, network: LatentFeedback, layout: StreamLayout, num_slots: int, device: torch.device):
        assert layout.latents is not None
        self._network, self._frame, self._latents = network, layout.audio[0].start, layout.latents
        # The last memory is for rows without a frame, so that the kernel launches do not depend on the rows.
        self._spare = num_slots
        self._memories = torch.zeros(num_slots + 1, network.num_kept, device=device)
        # Position of the last latent in each memory; -1 for none.
        self._rows = torch.full((num_slots + 1,), -1, dtype=torch.int64, device=device)
        self._is_on_host = device.type == "cpu"
        self._group = 1 if self._is_on_host else GROUP if envs.VLLM_BATCH_INVARIANT else 0
        self._aside = OrderedDict[str, Aside]()
        self._max_aside = max(1, MAX_ASIDE_BYTES // (4 * network.num_kept))
        self.num_restored = self.num_rebuilt = 0

    def advance(
        self,
        latents: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        begins: torch.Tensor,
        is_frame: torch.Tensor,
    ) -> torch.Tensor:
        """Return the network's features of the decoded audio, float32 [A, E], and update the memories.

        Args:
            latents: Latents, [A, D].
            slots: Slots of the rows, int64 [A].
            positions: Positions of the rows, int64 [A].
            begins: True for the first frame of a stretch, whose memory starts at zero, bool [A].
            is_frame: True for rows with a frame, bool [A]. The features of other rows are 0, and their memory is
                unchanged.
        """
        if not self._is_on_host:
            places = torch.where(is_frame, slots, self._spare)
            features = self._decode(latents, places, positions, begins | ~is_frame)
            return torch.where(is_frame[:, None], features, 0.0)
        found = latents.new_zeros(len(latents), self._latents.num_feedback)
        (at,) = is_frame.nonzero(as_tuple=True)
        if len(at):
            found[at] = self._decode(latents[at], slots[at], positions[at], begins[at])
        return found

    def put_aside(self, request_id: str, slot: int) -> None:
        """Save the memory of a request that leaves its slot, in case the request was preempted."""
        if self._is_on_host:
            if self._rows[slot] < 0:
                return
            self._aside[request_id] = Aside(self._rows[slot, None].clone(), self._memories[slot].clone(), None)
        else:  # the host does not wait for the copies
            row, memory = (
                torch.empty_like(each[0], device="cpu", pin_memory=True) for each in (self._rows, self._memories)
            )
            row.copy_(self._rows[slot], non_blocking=True)
            memory.copy_(self._memories[slot], non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._aside[request_id] = Aside(row[None], memory, copied)
        self._rows[slot] = -1
        self._aside.move_to_end(request_id)
        while len(self._aside) > self._max_aside:
            self._aside.popitem(last=False)

    def place(self, slot: int, data: SpeechRequestData) -> None:
        """Restore the memory of a request that continues in `slot`. A new request needs no memory."""
        row, aside = self._last_latent(data), self._aside.pop(data.req_id, None)
        self._rows[slot] = row
        if row < 0:
            return
        if aside is not None and aside.copied is not None:
            aside.copied.synchronize()  # recorded in an earlier step
        if aside is not None and int(aside.row) == row:
            self.num_restored += 1
            self._memories[slot].copy_(aside.memory, non_blocking=True)
            return
        self._rebuild(slot, row, data)

    def _rebuild(self, slot: int, row: int, data: SpeechRequestData) -> None:
        """Recompute the memory after position `row` from the latents of the stretch."""
        assert data.codes is not None
        self.num_rebuilt += 1
        first = max(self._stretch_start(data), row - self._network.reach)
        logger.info("%s: decoding the audio of %d frames again", data.req_id, row + 1 - first)
        latents = torch.from_numpy(latents_of(data.codes[first : row + 1, : self._latents.num_drawn]))
        device = self._memories.device
        places, positions = (torch.full((1,), value, device=device) for value in (slot, row))
        for index, latent in enumerate(latents.to(device).split(1)):
            self._decode(latent, places, positions, torch.full((1,), index == 0, device=device))

    def _decode(
        self, latents: torch.Tensor, places: torch.Tensor, positions: torch.Tensor, begins: torch.Tensor
    ) -> torch.Tensor:
        """Return the features [A, E] of latents [A, D], and update the memories at `places` [A].

        The batch is decoded in groups of a fixed size, so that a row's result does not depend on the other rows.
        """
        number, group = len(latents), self._group or len(latents)
        missing = -number % group
        if missing:
            latents, places = F.pad(latents, (0, 0, 0, missing)), F.pad(places, (0, missing), value=self._spare)
            positions, begins = F.pad(positions, (0, missing)), F.pad(begins, (0, missing), value=True)
        features = []
        for first in range(0, len(latents), group):
            part = slice(first, first + group)
            memory = self._memories[places[part]].masked_fill(begins[part, None], 0.0)
            found, memory = self._network(latents[part], memory)
            self._memories[places[part]] = memory
            features.append(found)
        self._rows[places] = positions.long()
        return torch.cat(features)[:number]

    def _last_latent(self, data: SpeechRequestData) -> int:
        """Return the position of the newest row if it is a frame of the reply, else -1."""
        assert data.params is not None
        ids = data.prefill_token_ids or []
        is_frame = len(ids) > data.prompt_len and ids[-1] == self._frame and not data.params.is_unconditional
        return len(ids) - 1 if is_frame else -1

    def _stretch_start(self, data: SpeechRequestData) -> int:
        """Return the position of the first frame of the newest stretch."""
        ids = np.asarray(data.prefill_token_ids)
        return 1 + int(np.flatnonzero(ids == self._latents.marks[0])[-1])


class StretchDraw(RowDraw):
    """Samples audio rows of families with `LatentSpec.marks`, with guided latents and features of the decoded audio.

    Args:
        readout: Heads and networks of the model.
        segments: Segment state of the rows.
        tables: Slot tables.
        arrays: Array factory.
        guard: Unused, because latents have no ids that could repeat.
        tokens: Stream 0 of every slot by position, int32 [R, T].

    Attributes:
        memory: Memories of the feedback network.
    """

    def __init__(
        self,
        readout: LatentReadout,
        segments: SegmentState,
        tables: SlotTables,
        arrays: Arrays,
        guard: RepetitionGuard,
        tokens: torch.Tensor,
    ):
        super().__init__(readout, segments, tables, arrays, guard)
        layout = segments.family.layout
        assert layout.latents is not None
        assert readout.feedback is not None
        assert readout.first_unconditional is not None
        self._predict: Any = readout.latents
        self._tokens, self._first_unconditional = arrays.wrap(tokens), readout.first_unconditional
        self._num_drawn, self._frame, self._marks = (
            layout.latents.num_drawn,
            layout.audio[0].start,
            layout.latents.marks,
        )
        ids = readout.heads.first_ids
        self._denied_after_end = (ids == self._frame) | (ids == self._marks[1])
        self.memory = FeedbackMemory(readout.feedback, layout, len(tables.state), tokens.device)

    def _draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the latents as words [M, D]; only rows that may be audio are set."""
        index, number = step.speaking, len(keys)
        both = hidden if step.audio_rows is None else hidden[step.audio_rows]
        own, others = both[:number], both[number:]
        slots, position = pick(rows.slots, index), pick(rows.position, index)
        before = self._arrays.tensor(self._tokens[slots, position - 1])
        begins = before == self._marks[0]
        logits = self._segments.mask_audio(self._heads.first(own), rows, index)
        logits = logits.masked_fill((before == self._marks[1])[:, None] & self._denied_after_end, -torch.inf)
        token = self._spread(self._heads.first_ids[logits.argmax(1)], index, rows)
        token = self._segments.end_audio(token, rows)
        is_frame = self._arrays.tensor(pick(token == self._frame, index))
        steps = self._arrays.tensor(pick(rows.limits.latent_steps, index)).clamp(min=1)
        noise = self._tensor(gaussian(keys[:, 1 : 1 + self._num_drawn]))
        # A row of a CFG pair is guided by the unconditional row; the first row of a stretch, by a constant state.
        is_guided = begins.clone()
        is_guided[: len(others)] = True
        scale = self._arrays.tensor(pick(rows.scales.guidance, index))
        unconditional = torch.cat([others, own[len(others) :]])
        unconditional = torch.where(begins[:, None], self._first_unconditional, unconditional)
        latents = self._predict(own, noise, steps, plan.solver, unconditional, torch.where(is_guided, scale, 1.0))
        where = self._arrays.tensor(slots), self._arrays.tensor(position)
        features = self.memory.advance(latents, *where, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        words = torch.where(is_frame[:, None], words, 0.0).view(torch.int32)
        return token, self._spread(words, index, rows)


class LatentStepProgram(StepProgram):
    """Kernel launches that sample a step for families with latent frames; see `StepProgram`.

    The predictor and the feedback network run after stream 0 is sampled and before the state of the replies is updated.
    For each solver step count in `captured_steps`, one variant is captured without guidance and one with it.

    Args:
        readout: Heads and networks of the model.
        rules: Rules of the family's replies.
        tables: Slot tables.
        tokens: Stream 0 of every slot by position, int32 [R, T].
        num_rows: Maximum number of rows in a step.
        captured_steps: Solver step counts for which graphs are captured.

    Attributes:
        memory: Memories of the feedback network; None for families without marks.
    """

    def __init__(
        self,
        readout: LatentReadout,
        rules: SegmentRules,
        tables: SlotTables,
        tokens: torch.Tensor,
        num_rows: int,
        captured_steps: Sequence[int],
    ):
        device, latents = tables.state.device, rules.family.layout.latents
        assert latents is not None
        super().__init__(readout, rules, tables, tokens, torch.zeros(num_rows, readout.width, device=device))
        self._predict: Any = readout.latents
        self._latents, self._first_unconditional = latents, readout.first_unconditional
        guided = (False, True) if latents.is_guided or latents.marks else (False,)
        plans = [SolverPlan(number, is_guided) for number in captured_steps for is_guided in guided]
        self.variants = [replace(each, solver=plan) for each in self.variants if each.speaks for plan in plans]
        self.memory: FeedbackMemory | None = None
        if readout.feedback is not None:
            self.memory = FeedbackMemory(readout.feedback, rules.family.layout, len(tables.state), device)
        self._noise = torch.zeros(num_rows, latents.num_drawn, device=device)
        self._before = torch.zeros(num_rows, latents.num_words if latents.is_guided else 0, device=device)
        self._guidance = torch.ones(num_rows, device=device)
        # Numbers: solver steps, row of the unconditional request, slot, position. Flags: begins a stretch, is a frame.
        self._numbers = torch.zeros(4, num_rows, dtype=torch.int64, device=device)
        self._flags = torch.zeros(2, num_rows, dtype=torch.bool, device=device)

    def _draw_others(self, hidden: torch.Tensor, variant: Variant) -> None:
        """Generate the latents of all rows, and write them as 32-bit words for `advance_kernel`."""
        number, rules, tables = len(hidden), self.constants.rules, self._tables
        latent_inputs_kernel[number,](
            self._noise, self._before, self._guidance, self._numbers, self._flags, self.columns.table, self.lengths,
            tables.state, tables.codes, self._first.history, self._first.drawn, rules, self._noise.shape[1],
            self._before.shape[1], self._first.history.stride(0), *self._latents.marks[:1] or (NO_MARK,),
            triton.next_power_of_2(max(rules.num_others, 2)), num_warps=1, **EXACT,
        )  # fmt: skip
        steps, others, slots, positions = self._numbers[:, :number]
        begins, is_frame = self._flags[:, :number]
        given = hidden, self._noise[:number], steps, variant.solver
        guidance, drawn = self._guidance[:number], self._codes.drawn[:number]
        if self.memory is None:
            context = (self._before[:number], guidance) if self._latents.is_guided else ()
            drawn.copy_(self._predict(*given, *context).contiguous().view(torch.int32))
            return
        assert self._first_unconditional is not None
        unconditional = torch.where(begins[:, None], self._first_unconditional, hidden[others])
        latents = self._predict(*given, unconditional, guidance)
        features = self.memory.advance(latents, slots, positions, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        drawn.copy_(torch.where(is_frame[:, None], words, 0.0).view(torch.int32))
