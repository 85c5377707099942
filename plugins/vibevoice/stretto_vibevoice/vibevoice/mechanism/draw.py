"""Sampling of rows in stretches of audio with marks around them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import triton

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.sampling.noise import gaussian
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays, SolverPlan
from stretto.engine.worker.latent_draw import LatentStepProgram
from stretto.engine.worker.predictors import FirstHead, LatentReadout, WeightRows
from stretto.engine.worker.sampler import RowDraw, pick
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto_vibevoice.vibevoice.family import Stretches
from stretto_vibevoice.vibevoice.mechanism.kernel import mask_after_end_kernel, stretch_inputs_kernel
from stretto_vibevoice.vibevoice.mechanism.memory import FeedbackMemory, LatentFeedback


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
    """Return the readout of a `StrettoVibeVoiceForCausalLM`, with a head for the ids of stream 0 in audio."""
    if model.family.audio_head:
        rows = model.audio_head.weight.data
    else:
        ids = torch.tensor([*rules.audio_ids(0), *rules.drawn_ends_of_audio])
        embedding = model.model.embed_tokens
        rows = WeightRows(embedding).gather(ids.to(embedding.get_parameter("weight").device))
    state = model.state_of_row(rules.family.drawing.prompt_end)
    return StretchReadout(FirstHead(rows, rules), predictor, rows.shape[1], model.feedback, state)


def denied_after_end(stretches: Stretches, readout: StretchReadout) -> torch.Tensor:
    """Return the columns of stream 0 that are forbidden after the mark that ends a stretch, bool [C]."""
    ids = readout.heads.first_ids
    return (ids == stretches.frame) | (ids == stretches.end)


class StretchDraw(RowDraw):
    """Sampler of audio rows with guided latents and features of the decoded audio."""

    memory: FeedbackMemory

    def __init__(self, stretches: Stretches, readout: StretchReadout, *arguments: Any):
        super().__init__(readout, *arguments)
        self._predict: Any = readout.latents
        self._first_unconditional = readout.first_unconditional
        self._size = self.segments.family.latent_size
        self._stretches = stretches
        self._denied_after_end = denied_after_end(stretches, readout)
        state = self.tables.state
        self.memory = FeedbackMemory(readout.feedback, stretches, self._size, len(state), state.device)

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the latents as words [M, D], set only in rows that may be audio."""
        index = step.speaking
        number = len(keys)
        both = hidden if step.audio_rows is None else hidden[step.audio_rows]
        conditional = both[:number]
        others = both[number:]
        slots = pick(rows.slots, index)
        position = pick(rows.position, index)
        before = self.arrays.tensor(self.tokens[slots, position - 1])
        begins = before == self._stretches.begin
        logits = self.segments.mask_audio(self.heads.first(conditional), rows, index)
        logits = logits.masked_fill((before == self._stretches.end)[:, None] & self._denied_after_end, -torch.inf)
        token = self.spread(self.heads.first_ids[logits.argmax(1)], index, rows)
        token = self.segments.end_audio(token, rows)
        is_frame = self.arrays.tensor(pick(token == self._stretches.frame, index))
        steps = self.arrays.tensor(pick(rows.limits.latent_steps, index)).clamp(min=1)
        noise = self.upload(gaussian(keys[:, 1 : 1 + self._size]))
        # A row of a CFG pair is guided by the unconditional row; the first row of a stretch, by a constant state.
        is_guided = begins.clone()
        is_guided[: len(others)] = True
        scale = self.arrays.tensor(pick(rows.scales.guidance, index))
        unconditional = torch.cat([others, conditional[len(others) :]])
        unconditional = torch.where(begins[:, None], self._first_unconditional, unconditional)
        latents = self._predict(
            conditional, noise, steps, plan.solver, unconditional, torch.where(is_guided, scale, 1.0)
        )
        where = self.arrays.tensor(slots), self.arrays.tensor(position)
        features = self.memory.advance(latents, *where, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        words = torch.where(is_frame[:, None], words, 0.0).view(torch.int32)
        return token, self.spread(words, index, rows)


class StretchProgram(LatentStepProgram):
    """Kernel launches that sample a step, with the same result as `StretchDraw`."""

    may_guide: ClassVar[bool] = True
    memory: FeedbackMemory

    def __init__(self, stretches: Stretches, readout: StretchReadout, rules: SegmentRules, *arguments: Any):
        super().__init__(readout, rules, *arguments)
        state = self.tables.state
        size = rules.family.latent_size
        self._stretches = stretches
        self._denied_after_end = denied_after_end(stretches, readout)
        self._first_unconditional = readout.first_unconditional
        self.memory = FeedbackMemory(readout.feedback, stretches, size, len(state), state.device)
        # Numbers: row of the unconditional request, slot, position. Flags: first frame of a stretch, frame.
        self._numbers = torch.zeros(3, self.num_rows, dtype=torch.int64, device=state.device)
        self._flags = torch.zeros(2, self.num_rows, dtype=torch.bool, device=state.device)

    def draw_first(self, logits: torch.Tensor) -> None:
        num_rows, num_columns = logits.shape
        tokens = self.first.history
        mask_after_end_kernel[num_rows,](
            logits, self._denied_after_end, self.columns.table, self.lengths, tokens, logits.stride(0),
            tokens.stride(0), self.num_rows, num_columns, self._stretches.end, triton.next_power_of_2(num_columns),
            num_warps=1,
        )  # fmt: skip
        super().draw_first(logits)

    def words(self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, solver: SolverPlan) -> torch.Tensor:
        number = len(hidden)
        tokens = self.first.history
        stretch_inputs_kernel[number,](
            self.guidance, self._numbers, self._flags, self.columns.table, self.lengths, self.tables.state, tokens,
            self.first.drawn, self.constants.rules, tokens.stride(0), self._stretches.begin, num_warps=1,
        )  # fmt: skip
        others, slots, positions = self._numbers[:, :number]
        begins, is_frame = self._flags[:, :number]
        unconditional = torch.where(begins[:, None], self._first_unconditional, hidden[others])
        latents = self.predict(hidden, noise, steps, solver, unconditional, self.guidance[:number])
        features = self.memory.advance(latents, slots, positions, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        return torch.where(is_frame[:, None], words, 0.0).view(torch.int32)
