"""Sampling of rows in stretches of audio with marks around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import triton

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays, SolverPlan
from stretto.engine.worker.latent_draw import LatentStepProgram
from stretto.engine.worker.predictors import FirstHead, LatentReadout, WeightRows
from stretto.engine.worker.sampler import RepetitionGuard, RowDraw, pick
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto.families.vibevoice.family import Stretches
from stretto.families.vibevoice.mechanism.kernel import mask_after_end_kernel, stretch_inputs_kernel
from stretto.families.vibevoice.mechanism.memory import FeedbackMemory, LatentFeedback
from stretto.sampling import gaussian


@dataclass(frozen=True)
class StretchReadout(LatentReadout):
    """Output head, latent predictor and feedback network of the model.

    Attributes:
        feedback: Network that computes a row's last words.
        first_unconditional: Hidden state [H] of an unconditional request whose only row is the mark that begins audio.
    """

    feedback: LatentFeedback
    first_unconditional: torch.Tensor


def readout_of(model: Any, predictor: Any, rules: SegmentRules) -> StretchReadout:
    """Return the readout of a `StrettoVibeVoiceForCausalLM`, whose head has the ids of stream 0 in audio."""
    if model.family.audio_head:
        rows = model.audio_head.weight.data
    else:
        ids = torch.tensor([*rules.audio_ids(0), *rules.drawn_ends_of_audio])
        embedding = model.model.embed_tokens
        rows = WeightRows(embedding).gather(ids.to(embedding.get_parameter("weight").device))
    state = model.state_of_row(rules.family.mechanism.prompt_end)
    return StretchReadout(FirstHead(rows, rules), predictor, rows.shape[1], model.feedback, state)


def denied_after_end(stretches: Stretches, readout: StretchReadout) -> torch.Tensor:
    """Return the columns of stream 0 that are forbidden after the mark that ends a stretch, bool [C]."""
    ids = readout.heads.first_ids
    return (ids == stretches.frame) | (ids == stretches.end)


class StretchDraw(RowDraw):
    """Samples audio rows with guided latents and features of the decoded audio.

    Args:
        stretches: The mechanism.
        readout: Heads and networks of the model.
        segments: Segment state of the rows.
        tables: Slot tables.
        arrays: Array factory.
        guard: Unused, because latents have no ids that could repeat.
        tokens: Stream 0 of every slot by position, int32 [R, T].

    Attributes:
        memory: Memories of the feedback network.
    """

    memory: FeedbackMemory

    def __init__(
        self,
        stretches: Stretches,
        readout: StretchReadout,
        segments: SegmentState,
        tables: SlotTables,
        arrays: Arrays,
        guard: RepetitionGuard,
        tokens: torch.Tensor,
    ):
        super().__init__(readout, segments, tables, arrays, guard)
        self._predict: Any = readout.latents
        self._tokens, self._first_unconditional = arrays.wrap(tokens), readout.first_unconditional
        self._size, self._stretches = segments.family.latent_size, stretches
        self._denied_after_end = denied_after_end(stretches, readout)
        self.memory = FeedbackMemory(readout.feedback, stretches, self._size, len(tables.state), tokens.device)

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the latents as words [M, D]; only rows that may be audio are set."""
        index, number = step.speaking, len(keys)
        both = hidden if step.audio_rows is None else hidden[step.audio_rows]
        own, others = both[:number], both[number:]
        slots, position = pick(rows.slots, index), pick(rows.position, index)
        before = self._arrays.tensor(self._tokens[slots, position - 1])
        begins = before == self._stretches.begin
        logits = self._segments.mask_audio(self._heads.first(own), rows, index)
        logits = logits.masked_fill((before == self._stretches.end)[:, None] & self._denied_after_end, -torch.inf)
        token = self._spread(self._heads.first_ids[logits.argmax(1)], index, rows)
        token = self._segments.end_audio(token, rows)
        is_frame = self._arrays.tensor(pick(token == self._stretches.frame, index))
        steps = self._arrays.tensor(pick(rows.limits.latent_steps, index)).clamp(min=1)
        noise = self._tensor(gaussian(keys[:, 1 : 1 + self._size]))
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


class StretchProgram(LatentStepProgram):
    """Kernel launches that do what `StretchDraw` does; see `LatentStepProgram` for the arguments.

    Attributes:
        memory: Memories of the feedback network.
    """

    may_guide: ClassVar[bool] = True
    memory: FeedbackMemory

    def __init__(
        self,
        stretches: Stretches,
        readout: StretchReadout,
        rules: SegmentRules,
        tables: SlotTables,
        tokens: torch.Tensor,
        num_rows: int,
        captured_steps: Sequence[int],
    ):
        super().__init__(readout, rules, tables, tokens, num_rows, captured_steps)
        size, device = rules.family.latent_size, tables.state.device
        self._stretches, self._denied_after_end = stretches, denied_after_end(stretches, readout)
        self._first_unconditional = readout.first_unconditional
        self.memory = FeedbackMemory(readout.feedback, stretches, size, len(tables.state), device)
        # Numbers: row of the unconditional request, slot, position. Flags: first frame of a stretch, frame.
        self._numbers = torch.zeros(3, num_rows, dtype=torch.int64, device=device)
        self._flags = torch.zeros(2, num_rows, dtype=torch.bool, device=device)

    def draw_first(self, logits: torch.Tensor) -> None:
        (num_rows, num_columns), tokens = logits.shape, self._first.history
        mask_after_end_kernel[num_rows,](
            logits, self._denied_after_end, self.columns.table, self.lengths, tokens, logits.stride(0),
            tokens.stride(0), self.num_rows, num_columns, self._stretches.end, triton.next_power_of_2(num_columns),
            num_warps=1,
        )  # fmt: skip
        super().draw_first(logits)

    def words(self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, solver: SolverPlan) -> torch.Tensor:
        number, tokens = len(hidden), self._first.history
        stretch_inputs_kernel[number,](
            self._guidance, self._numbers, self._flags, self.columns.table, self.lengths, self._tables.state, tokens,
            self._first.drawn, self.constants.rules, tokens.stride(0), self._stretches.begin, num_warps=1,
        )  # fmt: skip
        others, slots, positions = self._numbers[:, :number]
        begins, is_frame = self._flags[:, :number]
        unconditional = torch.where(begins[:, None], self._first_unconditional, hidden[others])
        latents = self._predict(hidden, noise, steps, solver, unconditional, self._guidance[:number])
        features = self.memory.advance(latents, slots, positions, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        return torch.where(is_frame[:, None], words, 0.0).view(torch.int32)
