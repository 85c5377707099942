"""Choice of text rows, frames and the end of a reply, and sampling of guided latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.sampling.noise import gaussian
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays, SolverPlan
from stretto.engine.worker.predictors import FirstHead, LatentReadout
from stretto.engine.worker.sampler import RowDraw, pick
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto_vibevoice.vibevoice_realtime.family import WindowRules


@dataclass(frozen=True)
class WindowReadout(LatentReadout):
    """Output head and latent predictor of the model.

    Attributes:
        first_states: Hidden state of the unconditional request's first row for each voice, [V, H].
    """

    first_states: torch.Tensor


class EndHead(FirstHead):
    """Head with a logit of 0 for a frame, and `logit` of the hidden states, [N, H] -> [N, 1], for the reply's end."""

    def __init__(self, logit: Callable[[torch.Tensor], torch.Tensor], rules: SegmentRules, device: torch.device):
        super().__init__(torch.zeros(2, 1, device=device), rules)
        self._logit = logit

    def raw_first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, [N, H] -> [N, 2]."""
        end = self._logit(hidden)
        return torch.cat([torch.zeros_like(end), end], 1)


def predicted(
    predict: Any, is_needed: np.ndarray | None, inputs: tuple[torch.Tensor, ...], solver: SolverPlan
) -> torch.Tensor:
    """Return latents, float32 [A, D], undefined in rows that are not needed.

    Args:
        is_needed: Rows to predict, bool [A]; None for all, because launches on a GPU must not depend on values.
        inputs: Hidden states, noise, solver steps, unconditional states and guidance scales of the rows, [A, ...] each.
    """

    def call(hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, *guided: torch.Tensor) -> torch.Tensor:
        predicted_latents: torch.Tensor = predict(hidden, noise, steps, solver, *guided)
        return predicted_latents

    if is_needed is None or is_needed.all():
        return call(*inputs)
    latents = torch.zeros_like(inputs[1])
    if is_needed.any():
        at = torch.from_numpy(is_needed.nonzero()[0])
        latents[at] = call(*(rows[at] for rows in inputs))
    return latents


class WindowDraw(RowDraw):
    """Sampler of the rows of replies that read their text in windows."""

    def __init__(self, rules: WindowRules, readout: WindowReadout, *arguments: Any):
        super().__init__(readout, *arguments)
        self._predict: Any = readout.latents
        family = self.segments.family
        self._texts = self.arrays.wrap(self.tables.texts)
        self._windows = rules.windows
        self._first_states = readout.first_states
        self._size = family.latent_size
        self._voice_ends = self.arrays.upload(np.array(rules.windows.first_rows[1:], np.int64))
        self._lane = family.track_streams.start - 1

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return the ids of stream 0 [M] and the words [M, D]. The text tokens are written to the slot tables."""
        index = step.speaking
        number = len(keys)
        xp = self.arrays.xp
        windows = self._windows
        both = hidden if step.audio_rows is None else hidden[step.audio_rows]
        conditional = both[:number]
        others = both[number:]
        slots, position, row = (pick(column, index) for column in (rows.slots, rows.position, rows.frame))
        total = pick(rows.limits.track_total, index)
        is_word = windows.is_word(row, total)
        follows_frame = (row > 0) & ~windows.is_word(row - 1, total)
        logits = self.segments.mask_audio(self.heads.first(conditional), rows, index)
        logits[:, 1] = logits[:, 1].masked_fill(~self.arrays.tensor(follows_frame), -torch.inf)
        drawn = self.arrays.wrap(self.heads.first_ids[logits.argmax(1)])
        token = xp.where(is_word & (drawn == windows.frame), windows.word, drawn)
        token = self.segments.end_audio(self.spread(self.arrays.tensor(token), index, rows), rows)
        drawn = pick(token, index)
        is_word = drawn == windows.word
        is_frame = drawn == windows.frame
        # The tokens are on the text stream, which `RowDraw` copies from the tables.
        _, number = windows.within_window(row)
        texts = self._texts[slots, xp.clip(number, 0, self._texts.shape[1] - 1)]
        self.codes[slots, position, self._lane] = self.arrays.int32(xp.where(is_word, texts, 0))
        voice = xp.searchsorted(self._voice_ends, self.tokens[slots, 0] + 0 * slots, side="right")
        voice = xp.clip(voice, 0, len(self._first_states) - 1)  # vLLM's warm-up uses arbitrary ids
        first = xp.clip(total, 0, windows.num_words)
        is_first = row == first
        # The rows of CFG pairs come first. A constant of the voice guides the first frame of a reply.
        begins = self.arrays.tensor(is_first)
        free = torch.cat([others, conditional[len(others) :]])
        free = torch.where(begins[:, None], self._first_states[self.arrays.tensor(voice)], free)
        scale = self.arrays.tensor(pick(rows.scales.guidance, index))
        scale = torch.cat([scale[: len(others)], torch.where(begins, scale, 1.0)[len(others) :]])
        steps = self.arrays.tensor(pick(rows.limits.latent_steps, index)).clamp(min=1)
        inputs = conditional, self.upload(gaussian(keys[:, 1 : 1 + self._size])), steps, free, scale
        words = predicted(self._predict, is_frame if xp is np else None, inputs, plan.solver)
        is_frame, is_word = (self.arrays.tensor(mask)[:, None] for mask in (is_frame, is_word))
        mark = begins[:, None].float()
        words = torch.where(is_frame, torch.cat([words, mark], 1), 0.0).view(torch.int32)
        numbers = torch.zeros_like(words)
        numbers[:, 0] = self.arrays.tensor(voice)
        return token, self.spread(torch.where(is_word, numbers, words), index, rows)
