"""Sampling for families whose frames are latents, and the states of networks that encode the decoded audio."""

import logging
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from stretto.engine.protocol import SpeechRequestData
from stretto.engine.worker.predictors import LatentFeedback, LatentReadout
from stretto.engine.worker.run_slots import BatchPlan, PlanArrays
from stretto.engine.worker.sampler import RepetitionGuard, RowDraw, pick
from stretto.engine.worker.segment_state import Countdown, Rows, SegmentState
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto.sampling import gaussian
from stretto.streams.layout import StreamLayout, latents_of

logger = logging.getLogger(__name__)


class LatentDraw(RowDraw):
    """Sampling of audio rows with latents: the most probable id on stream 0, and a latent from the predictor."""

    def __init__(
        self, readout: LatentReadout, segments: SegmentState, tables: SlotTables, arrays: Arrays, guard: RepetitionGuard
    ):
        super().__init__(readout, segments, tables, arrays, guard)
        self._predict: Any = readout.latents
        self._countdown = Countdown(segments.rules, arrays)
        layout = segments.family.layout
        self._is_guided = layout.latents is not None and layout.latents.is_guided

    def _draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the latents as words [M, D]; only rows that may be audio are set."""
        own = hidden if step.audio_rows is None else hidden[step.audio_rows]
        logits = self._segments.mask_audio(self._heads.first(own), rows, step.speaking)
        token = self._spread(self._heads.first_ids[logits.argmax(1)], step.speaking, rows)
        token = self._countdown(self._segments.end_audio(token, rows), rows)
        noise = self._tensor(gaussian(keys[:, 1:])) * step.audio.temperature.sqrt()[:, None]
        steps = self._arrays.tensor(pick(rows.limits.latent_steps, step.speaking))
        context = self._context(rows, step.speaking) if self._is_guided else ()
        words = self._predict(own, noise, steps, *context).contiguous().view(torch.int32)
        return token, self._spread(words, step.speaking, rows)

    def _context(self, rows: Rows, index: Array | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents [A, D] of the previous rows, and the guidance scales [A]."""
        before = self._codes[pick(rows.slots, index), pick(rows.position, index) - 1]
        before = self._arrays.tensor(before)[:, : self._num_streams - 1].contiguous()
        return before.view(torch.float32), self._arrays.tensor(pick(rows.scales.guidance, index))


MAX_ASIDE_BYTES = 256 << 20


class FeedbackMemory:
    """Recurrent states ("memories") of a feedback network by slot; those of preempted requests are saved.

    If a request resumes and its memory was not saved, it is computed again from the latents, one by one, with the same
    bits.

    Args:
        network: The network.
        layout: Streams of the family, which has marks.
        num_slots: Number of slots.
        device: Device of the memories.

    Attributes:
        num_restored: Number of saved memories that were restored.
        num_rebuilt: Number of memories that were computed again.
    """

    def __init__(self, network: LatentFeedback, layout: StreamLayout, num_slots: int, device: torch.device):
        assert layout.latents is not None
        self._network, self._frame, self._latents = network, layout.audio[0].start, layout.latents
        self._memories = torch.zeros(num_slots, network.num_kept, device=device)
        self._rows = np.full(num_slots, -1, np.int64)  # position of the last latent in each memory; -1 for none
        self._aside = OrderedDict[str, tuple[int, torch.Tensor]]()
        self._max_aside = max(1, MAX_ASIDE_BYTES // (4 * network.num_kept))
        self.num_restored = self.num_rebuilt = 0

    def advance(
        self, latents: torch.Tensor, slots: Array, positions: Array, begins: torch.Tensor, is_frame: torch.Tensor
    ) -> torch.Tensor:
        """Return the network's features of the decoded audio, float32 [A, E], and update the memories.

        Args:
            latents: Latents, [A, D].
            slots: Slots of the rows, [A].
            positions: Positions of the rows, [A].
            begins: True for the first frame of a stretch, before which a memory is zero, bool [A].
            is_frame: True for rows with a frame, bool [A]. The features of other rows are 0, and their memory is
                unchanged.
        """
        found = latents.new_zeros(len(latents), self._latents.num_feedback)
        for index in is_frame.nonzero().flatten().tolist():  # one by one, so that the bits are the same in every batch
            slot = int(slots[index])
            memory = self._memories[slot : slot + 1]
            if begins[index]:
                memory = torch.zeros_like(memory)
            found[index], self._memories[slot] = (each[0] for each in self._network(latents[index, None], memory))
            self._rows[slot] = int(positions[index])
        return found

    def put_aside(self, request_id: str, slot: int) -> None:
        """Save the memory of a request that leaves its slot, in case it was preempted."""
        row, self._rows[slot] = int(self._rows[slot]), -1
        if row >= 0:
            self._aside[request_id] = row, self._memories[slot].cpu().clone()
            self._aside.move_to_end(request_id)
            while len(self._aside) > self._max_aside:
                self._aside.popitem(last=False)

    def place(self, slot: int, data: SpeechRequestData) -> None:
        """Restore the memory of a request that continues in `slot`; a new request needs none."""
        row, aside = self._last_latent(data), self._aside.pop(data.req_id, None)
        self._rows[slot] = row
        if row < 0:
            return
        if aside is not None and aside[0] == row:
            self.num_restored += 1
            self._memories[slot] = aside[1].to(self._memories.device)
            return
        assert data.codes is not None
        self.num_rebuilt += 1
        first = max(self._stretch_start(data), row - self._network.reach)
        logger.info("%s: decoding the audio of %d frames again", data.req_id, row + 1 - first)
        latents = latents_of(data.codes[first : row + 1, : self._latents.num_drawn])
        memory = torch.zeros_like(self._memories[slot : slot + 1])
        for latent in torch.from_numpy(latents).to(memory.device).split(1):
            _, memory = self._network(latent, memory)
        self._memories[slot] = memory[0]

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
    """Sampling for families with `LatentSpec.marks`: CFG pairs of latents, and features of the decoded audio.

    Args:
        readout: Heads and networks of the model.
        segments: Segment state of the rows.
        tables: Slot tables.
        arrays: Array factory.
        guard: Unused; latents have no ids that could repeat.
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
        steps = self._arrays.tensor(pick(rows.limits.latent_steps, index))
        noise = self._tensor(gaussian(keys[:, 1 : 1 + self._num_drawn]))
        # A row of a CFG pair is guided by the unconditional row, the first row of a stretch by a constant state.
        is_guided = begins.clone()
        is_guided[: len(others)] = True
        scale = self._arrays.tensor(pick(rows.scales.guidance, index))
        unconditional = torch.cat([others, own[len(others) :]])
        unconditional = torch.where(begins[:, None], self._first_unconditional, unconditional)
        latents = self._predict(own, noise, steps, unconditional, torch.where(is_guided, scale, 1.0))
        features = self.memory.advance(latents, slots, position, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        words = torch.where(is_frame[:, None], words, 0.0).view(torch.int32)
        return token, self._spread(words, index, rows)
