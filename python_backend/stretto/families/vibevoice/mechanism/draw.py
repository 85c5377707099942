"""Sampling of rows in stretches of audio with marks around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.latent_draw import LatentStepProgram
from stretto.engine.worker.predictors import FirstHead, LatentReadout, WeightRows
from stretto.engine.worker.run_slots import BatchPlan, PlanArrays, SolverPlan
from stretto.engine.worker.sampler import RepetitionGuard, RowDraw, pick
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto.families.vibevoice.family import Stretches
from stretto.families.vibevoice.mechanism.memory import FeedbackMemory, LatentFeedback
from stretto.sampling import gaussian
from stretto.streams.layout import LatentSpec


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
    if model.family.has_audio_head:
        rows = model.audio_head.weight.data
    else:
        ids = torch.tensor([*rules.audio_ids(0), *rules.drawn_ends_of_audio])
        embedding = model.model.embed_tokens
        rows = WeightRows(embedding).gather(ids.to(embedding.get_parameter("weight").device))
    state = model.state_of_row(rules.marks[0])
    return StretchReadout(FirstHead(rows, rules), predictor, rows.shape[1], model.feedback, state)


class StretchDraw(RowDraw):
    """Samples audio rows with guided latents and features of the decoded audio.

    Args:
        stretches: The mechanism, which has no constants.
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
        layout = segments.family.layout
        assert layout.latents is not None
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


class StretchProgram(LatentStepProgram):
    """Kernel launches that do what `StretchDraw` does; see `LatentStepProgram` for the arguments.

    Attributes:
        memory: Memories of the feedback network.
    """

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
        layout, ids, (self.begin, end) = rules.family.layout, readout.heads.first_ids, rules.marks
        self._after_end = (ids == layout.audio[0].start) | (ids == end)
        self._first_unconditional = readout.first_unconditional
        self.memory = FeedbackMemory(readout.feedback, layout, len(tables.state), tables.state.device)

    def may_guide(self, latents: LatentSpec) -> bool:
        """Return True: the rows of a CFG pair are guided."""
        return True

    def _words(
        self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, solver: SolverPlan
    ) -> torch.Tensor:
        number = len(hidden)
        _, others, slots, positions = self._numbers[:, :number]
        begins, is_frame = self._flags[:, :number]
        unconditional = torch.where(begins[:, None], self._first_unconditional, hidden[others])
        latents = self._predict(hidden, noise, steps, solver, unconditional, self._guidance[:number])
        features = self.memory.advance(latents, slots, positions, begins, is_frame)
        words = torch.cat([latents, begins[:, None].float(), features], 1)
        return torch.where(is_frame[:, None], words, 0.0).view(torch.int32)
