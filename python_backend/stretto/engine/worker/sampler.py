"""Samplers that use numpy or torch arrays, for one or several rows per step."""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from stretto.engine.columns import LIMITS, REDRAWS, STATE, Array, SlotState
from stretto.engine.kernels.draw import draw
from stretto.engine.kernels.logit_options import LOGIT_OPTIONS
from stretto.engine.sampling.noise import attempt_keys, redraw_keys, stream_keys
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto.engine.sampling.repetition import RepetitionRule, is_repeated, penalize
from stretto.engine.tracks import ENDLESS
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays, StepRows, pick
from stretto.engine.worker.bursts import BurstSampler
from stretto.engine.worker.guided_heads import GuidedHeads
from stretto.engine.worker.predictors import (
    FramePredictor,
    LatentReadout,
    Readout,
    RequestMemory,
)
from stretto.engine.worker.run_slots import KeysAhead, RunSlots
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Arrays, SlotTables, counted_columns
from stretto.family.base import Family

NOT_COUNTED = -1
EVERYTHING = DrawPlan(is_random=True, has_top_p=False)
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # logits of a draw, token ids, noise keys


@dataclass(frozen=True)
class RecentRows:
    """Previous rows of A replies.

    Attributes:
        slots: Run slots, [A, 1].
        positions: Positions of the previous rows, the latest first, [A, W].
        counts: True for audio rows of the reply, [A, W].
    """

    slots: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    rule: RepetitionRule


class RepetitionGuard:
    """Repetition-aware sampling (RAS), which resamples ids that occur too often in the previous rows.

    Only codes are resampled, not pads, other audio ids or end ids. A family's sampler may have a subclass.

    Args:
        tokens: vLLM's copy of stream 0 by slot and position, int32 [R, T]; also an attribute.
    """

    def __init__(self, tokens: torch.Tensor, tables: SlotTables, family: Family, arrays: Arrays):
        self.tokens = tokens
        self._codes = tables.codes
        self._arrays = arrays
        layout = family.layout
        codebooks = [layout.audio[s] if s in layout.codebook_streams else range(0) for s in range(len(layout.audio))]
        self._codebooks = torch.tensor([[ids.start, ids.stop] for ids in codebooks], device=tokens.device)

    def recent(self, rows: Rows, index: Array | None, window: int) -> RecentRows:
        """Return the `window` rows before each of the rows `index` [A] (None for all)."""

        def column(values: Array) -> torch.Tensor:
            return self._arrays.tensor(values if index is None else values[index])

        options = rows.scales.options
        position = column(rows.position)
        start = column(rows.state.audio_start)
        positions = position[:, None] - torch.arange(1, window + 1, device=position.device)
        return RecentRows(
            slots=column(rows.slots)[:, None],
            positions=positions.clamp(min=0),
            counts=positions >= start.clamp(min=0)[:, None],
            rule=RepetitionRule(column(options["ras_window"]).long(), column(options["ras_max_repeats"]).long()),
        )

    def first(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows) -> torch.Tensor:
        """Return the ids of stream 0, [A, 1], with repeated codes sampled again from `logits`."""
        history = self.tokens[recent.slots, recent.positions]
        return self._redraw(drawn, history[..., None], self._codebooks[:1], logits, recent)

    def auxiliary(self, drawn: torch.Tensor, logits: Logits, recent: RecentRows, streams: slice) -> torch.Tensor:
        """Return the ids of `streams` (a slice of 1 to S - 1), [A, k], with repeated codes sampled again."""
        codebooks = self._codebooks[1:]
        history = self._codes[recent.slots, recent.positions, : len(codebooks)][..., streams]
        return self._redraw(drawn, history, codebooks[streams], logits, recent)

    def _redraw(
        self, drawn: torch.Tensor, history: torch.Tensor, codebooks: torch.Tensor, logits: Logits, recent: RecentRows
    ) -> torch.Tensor:
        history = torch.where(recent.counts[..., None], history, NOT_COUNTED)
        again = is_repeated(drawn, history, recent.rule) & self.is_guarded(drawn, codebooks)
        values, ids, keys = logits
        plain = values.new_ones(len(drawn))
        params = DrawParams(plain, torch.zeros_like(recent.rule.window), plain)
        return torch.where(again, draw(values, ids, redraw_keys(keys), params, EVERYTHING), drawn)

    def is_guarded(self, drawn: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
        """Return True for the ids in `drawn` [A, k] that lie in the range of their stream in `codebooks` [k, 2]."""
        return (drawn >= codebooks[:, 0]) & (drawn < codebooks[:, 1])


class RowDraw:
    """Sampler of the conditional rows of a batch; guided rows also use the logits of their CFG partners.

    A family's sampler (`DrawRules.row_draw`) is a subclass that overrides public methods (hooks). Methods of its GPU
    program (`StepProgram`) have the same names.

    Args:
        tokens: vLLM's copy of stream 0 by slot and position, int32 [R, T].

    Attributes:
        codes: The other streams by slot and position, an array over `SlotTables.codes`.
    """

    memory: RequestMemory | None = None
    frames: FramePredictor

    def __init__(
        self,
        readout: Readout | LatentReadout,
        segments: SegmentState,
        tables: SlotTables,
        arrays: Arrays,
        tokens: torch.Tensor,
    ):
        self.heads = readout.heads
        if isinstance(readout, Readout):
            self.frames = readout.frames
        self.segments = segments
        self.tables = tables
        self.arrays = arrays
        self.tokens = arrays.wrap(tokens)
        self.codes = arrays.wrap(tables.codes)
        self.guard = RepetitionGuard(tokens, tables, segments.family, arrays)
        self._seen = arrays.wrap(tables.seen) if segments.family.drawing.counts_ids else None
        self._is_seen = arrays.upload(np.ones((), bool))  # a Python `True` would be copied to the GPU in each step
        family = segments.family
        streams = family.track_streams
        self._track = slice(streams.start - 1, streams.stop - 1) if streams else None
        self._guided = GuidedHeads(readout.heads, family)
        self._second = streams.start - 1 if family.second_ids else None

    def __call__(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Sample the rows of a plan and return stream 0 [M] and the other streams [M, S - 1].

        Args:
            hidden: Hidden states of all rows, [B, H].
            rows: State of the sampled rows, updated in place.
        """
        text = audio = codes = None
        if plan.may_write:
            text = self._draw_text(hidden, pick(keys, plan.writing), plan, step, rows)
        if plan.may_speak:
            audio, codes = self.draw_audio(hidden, pick(keys, plan.speaking), plan, step, rows)
        token = self.segments.choose(text, audio, rows)
        if self._seen is not None:
            self._seen[rows.slots, counted_columns(token, self.segments.rules.counted_ids)] = self._is_seen
        there = self.codes[rows.slots, rows.position] if plan.has_delayed_tail or self._track else None
        laid = self.segments.place_codes(codes, token, rows, there if plan.has_delayed_tail else None)
        if self._track is not None and there is not None:
            laid[:, self._track] = there[:, self._track]
        return token, self.finish_row(token, laid, plan, rows)

    def finish_row(self, token: Array, laid: Array, plan: BatchPlan, rows: Rows) -> Array:
        """Return streams 1 to S - 1 of rows, [M, S - 1] (a hook, which may update the family's state and entries)."""
        return laid

    def spread(self, drawn: torch.Tensor, index: Array | None, rows: Rows) -> Array:
        """Scatter values sampled for the rows `index` (None for all) into an array over all sampled rows."""
        values = self.arrays.wrap(drawn)
        if index is None:
            return values
        spread = self.arrays.zeros(len(rows.position), *drawn.shape[1:])
        spread[index] = values
        return spread

    def upload(self, values: np.ndarray) -> torch.Tensor:
        """Return `values` as a tensor on the step's device, without waiting for the copy."""
        return self.arrays.tensor(self.arrays.upload(values))

    def _draw_text(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> Array:
        """Sample stream 0 of rows that may be in a text segment, and return the ids [M] (0 for other rows)."""
        text_hidden = hidden if step.text_rows is None else hidden[step.text_rows]
        logits = self.heads.text(text_hidden)
        if self._seen is not None:
            logits = self._with_penalty(logits, rows, step.writing)
        logits = self.segments.mask_text(logits, rows, step.writing)
        token = draw(logits[:, None], self.heads.text_ids[None], self.upload(keys[:, :1]), step.text, plan.text)
        token_ids = self.spread(token.squeeze(1), step.writing, rows)
        return self.segments.end_text(token_ids, rows, self.text_is_full(rows))

    def text_is_full(self, rows: Rows) -> Array | bool:
        """Return True for texts that the family ends with their next row, [B] (a hook)."""
        return False

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Sample rows that may be in an audio segment and return stream 0 [M] and the other streams [M, K]."""
        audio_hidden = hidden if step.audio_rows is None else hidden[step.audio_rows]
        num_rows = len(keys)
        num_shared = len(step.guidance) if self.frames.reads_drawn else 0
        recent = self.guard.recent(rows, step.speaking, plan.ras_window) if plan.ras_window else None
        first = self._guided.first(audio_hidden, num_rows, step.guidance)
        token = self.draw_first(first, keys[:, :1], plan, step, rows, recent)
        token = self.replace_first(token, rows)
        code_keys = self.upload(keys[:, 1:])

        def draw_codes(logits: torch.Tensor, streams: slice) -> torch.Tensor:
            guided = self._guided.codes(logits, streams, num_rows, step.guidance)
            guided = self.penalized_others(guided, rows, step.speaking, streams)
            ids = self.heads.codes[streams]
            own_keys = code_keys[:, streams]
            if self.segments.rules.num_end_columns[1]:
                guided = self.segments.mask_other_ends(guided, rows, step.speaking)
            drawn_from = guided, ids, own_keys
            codes = self.chosen_others(drawn_from, plan, step)
            return _both(self.guard.auxiliary(codes, drawn_from, recent, streams) if recent else codes, num_shared)

        read = token
        if self._second is not None:
            read = self.arrays.stack([token, self.codes[rows.slots, rows.position, self._second] + 0 * token])
        first_ids = _both(self.arrays.tensor(pick(read, step.speaking)), num_shared)
        codes = self.frames(audio_hidden, first_ids, draw_codes)[:num_rows]
        spread = self.spread(codes, step.speaking, rows)
        token, spread = self.replace_streams(token, spread, rows)
        token = self.segments.end_audio(token, rows)
        if self.segments.family.end_frame:
            token = self.segments.end_frame(token, spread, rows)
        return token, spread

    def replace_first(self, token: Array, rows: Rows) -> Array:
        """Return `token` [M] with ids that the family replaces before the other streams are sampled (a hook)."""
        return token

    def replace_streams(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """Return stream 0 [M] and the others [M, K] with ids that the family replaces once all are sampled (a hook)."""
        return token, codes

    def _with_penalty(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        assert self._seen is not None
        slots = pick(rows.slots, index)
        penalty = pick(rows.scales.options["repetition_penalty"], index)
        return penalize(logits, self.arrays.tensor(self._seen[slots, :-1]), self.arrays.tensor(penalty))

    def draw_first(
        self,
        logits: torch.Tensor,
        keys: np.ndarray,
        plan: BatchPlan,
        step: PlanArrays,
        rows: Rows,
        recent: RecentRows | None,
    ) -> Array:
        """Sample stream 0 of rows that may be in audio from guided logits [A, C0 + E] and return the ids [M]."""
        index = step.speaking
        penalized = self.penalized(logits, rows, index)
        permitted = masked = self.segments.mask_audio(penalized, rows, index, self.hidden_ends(rows))
        for name, limit in LOGIT_OPTIONS.items():
            if name in plan.used:
                permitted = limit(permitted, self.arrays.tensor(pick(rows.scales.options[name], index)))
        ids = self.heads.first_ids[None]
        own_keys = self.upload(keys)
        token = self.chosen(permitted, own_keys, plan, step, rows)
        if recent:
            token = self.guard.first(token, (self.redrawn_from(masked, token)[:, None], ids, own_keys), recent)
        return self.spread(token.squeeze(1), index, rows)

    def penalized(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Return the logits of stream 0 in audio [A, C0 + E] with the repetition penalty, applied in place.

        In a family with text, the penalty applies to the text instead.
        """
        if self._seen is not None and not self.segments.rules.num_text_ids:
            counted = logits[:, : self._seen.shape[1] - 1]
            counted.copy_(self._with_penalty(counted, rows, index))
        return logits

    def penalized_others(self, logits: torch.Tensor, rows: Rows, index: Array | None, streams: slice) -> torch.Tensor:
        """Return the logits of a slice of streams 1 to S - 1, [A, k, C], with the family's penalty (a hook)."""
        return logits

    def hidden_ends(self, rows: Rows) -> Array | None:
        """Return True for end ids of stream 0 that rows may not have, [M, E], or None to hide all in short audio."""
        return None

    def chosen(
        self, logits: torch.Tensor, keys: torch.Tensor, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> torch.Tensor:
        """Sample ids of stream 0 in audio, [A, 1], from masked `logits` [A, C0 + E] (a hook)."""
        return draw(logits[:, None], self.heads.first_ids[None], keys, step.audio, plan.audio)

    def chosen_others(self, drawn_from: Logits, plan: BatchPlan, step: PlanArrays) -> torch.Tensor:
        """Sample ids of some of the other streams in audio, [A, k] (a hook)."""
        return draw(*drawn_from, step.depth, plan.depth)

    def redrawn_from(self, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the logits [A, C0 + E] from which repeated ids among `drawn` [A, 1] are sampled again (a hook)."""
        return logits


def _both(drawn: torch.Tensor, num_paired: int) -> torch.Tensor:
    """Return `drawn` [A, ...], followed by a copy of its first `num_paired` rows for unconditional requests."""
    return torch.cat([drawn, drawn[:num_paired]]) if num_paired else drawn


class SpeechSampler:
    """Sampler of the rows (all streams) of a step, with the interface that vLLM's model runner expects.

    Attributes:
        drawn: Ids of stream 0 that the last step of one row per request has sampled, [B, 1].
    """

    drawn: torch.Tensor

    def __init__(
        self, stock: Sampler, slots: RunSlots, draw: RowDraw, segments: SegmentState, bursts: BurstSampler | None = None
    ):
        self._bursts = bursts
        self._tokens = slots.arrays.wrap(stock.req_states.all_token_ids.gpu) if bursts else None
        self.penalties_state = stock.penalties_state
        self.compute_nans = False
        self._slots = slots
        self._arrays = slots.arrays
        self._draw = draw
        self._segments = segments
        num_streams = segments.family.layout.num_output_streams
        self._noise = KeysAhead(lambda keys, positions: stream_keys(keys, positions, num_streams))
        tables = slots.tables
        arrays = slots.arrays
        self._all_state = arrays.wrap(tables.state)
        self._codes = arrays.wrap(tables.codes)
        self._table = self._all_state[:, : len(STATE)]
        self._sent = arrays.upload(np.array(tables.sent_columns))
        self._width = self._codes.shape[2] + len(tables.sent_columns)
        delays, hidden, initial, _ = segments.rules.other_streams
        self._hidden, self._delays, self._initial = map(arrays.upload, (hidden != 0, delays, initial))
        self._nothing = torch.zeros(slots.num_slots, 1, device=tables.state.device)
        self._none = torch.zeros(slots.num_slots, dtype=torch.int32, device=tables.state.device)

    def add_request(self, req_idx: int, sampling_params: object) -> None:
        """Ignore vLLM's sampling parameters: ours are in the slot tables."""

    def apply_staged_writes(self) -> None:
        """Do nothing: `SpeechModelState` uploads the slot tables."""

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample the rows of each request of `batch` from its last hidden state in `hidden` [B, H]."""
        if self._bursts is not None:
            return self._bursts.sample(
                hidden, batch, lambda states, next_rows, row_index: self._row(states, batch, next_rows, row_index)[:3]
            )
        tokens, codes, cuts, step = self._row(hidden, batch, self._slots.rows(batch))
        nothing = self._nothing[: batch.num_reqs]
        self.drawn = self._arrays.tensor(tokens)[:, None]
        return SamplerOutput(
            sampled_token_ids=self.drawn,
            # Codes, state and cut flags are sent in vLLM's asynchronous copy of log-probabilities.
            logprobs_tensors=LogprobsTensors(self._arrays.tensor(codes), nothing, self._arrays.tensor(cuts)),
            num_nans=None,
            num_sampled=step.num_sampled,
            num_rejected=self._none[: batch.num_reqs],
        )

    def _row(
        self, hidden: torch.Tensor, batch: InputBatch, rows: StepRows, row_index: int = 0
    ) -> tuple[Array, Array, Array, PlanArrays]:
        """Sample a row for each request, and return the results of `_sample` and the plan's arrays."""
        plan, step = self._slots.plan(rows, row_index)
        if not len(plan.drawing):
            return *self._blank(batch.num_reqs), step
        return *self._sample(hidden, batch, plan, step, row_index), step

    def _blank(self, num_rows: int) -> tuple[Array, Array, Array]:
        codes = self._arrays.zeros(num_rows, self._width)
        cuts = self._arrays.zeros(num_rows)
        return self._arrays.zeros(num_rows), self._arrays.int32(codes), self._arrays.int32(cuts)

    def _sample(
        self, hidden: torch.Tensor, batch: InputBatch, plan: BatchPlan, step: PlanArrays, row_index: int
    ) -> tuple[Array, Array, Array]:
        """Sample the rows of a plan and return stream 0 [B], other streams and state [B, S - 1 + C], and cut flags [B].

        Both requests of a CFG pair get the same ids. A cut flag is 1 if a limit ended a segment in this row. The flag
        and the state after the row are set only for conditional requests.
        """
        # The sampled row follows the request's last token.
        lengths = self._arrays.wrap(batch.seq_lens)
        position = lengths[: batch.num_reqs] if step.sampling is None else lengths[step.sampling]
        position = position + row_index if row_index else position
        num_drawing = len(plan.drawing)
        slots = step.slots[:num_drawing]
        state = SlotState(*self._table[slots].T)
        rows = Rows(state, step.limits, step.scales, slots, position[:num_drawing])
        token, codes = self._draw(hidden, self._keys(batch, plan, row_index, rows), plan, step, rows)
        self._write_state(token, slots, rows, plan)
        tokens, all_codes = self._share(token, self._arrays.int32(codes), rows.frame[: plan.num_paired])
        self._keep(step.slots, position, tokens, all_codes)
        sent = self._all_state[slots][:, self._sent]
        num_codes = all_codes.shape[1]
        every_token, every_row, every_cut = self._blank(batch.num_reqs)
        if step.sampling is None:
            every_row[:, :num_codes] = all_codes
            every_row[:num_drawing, num_codes:] = sent
            every_cut[:num_drawing] = rows.is_cut
            return tokens, every_row, every_cut
        drawing = step.sampling[:num_drawing]
        every_token[step.sampling] = tokens
        every_row[step.sampling, :num_codes] = all_codes
        every_row[drawing, num_codes:] = self._arrays.int32(sent)
        every_cut[drawing] = self._arrays.int32(rows.is_cut)
        return every_token, every_row, every_cut

    def _keep(self, slots: Array, position: Array, tokens: Array, codes: Array) -> None:
        """Record the codes, and stream 0 if later rows of this step read it before vLLM records it."""
        self._codes[slots, position] = codes
        if self._tokens is not None:
            self._tokens[slots, position] = self._arrays.int32(tokens)

    def _keys(self, batch: InputBatch, plan: BatchPlan, row_index: int, rows: Rows) -> np.ndarray:
        """Return the noise keys of the sampled rows, int32 [M, S], computed on the host."""
        limits = self._slots.tables.limits[batch.idx_mapping_np[plan.drawing]]
        keys = limits[:, LIMITS["seed_key"]].astype(np.int32)
        if (limits[:, REDRAWS] < ENDLESS).any():
            state = rows.state
            before = self._arrays.rules.num_audio_rows(
                rows.position, state.audio_start, state.num_codes, self._segments.rules.constants
            )
            before = self._arrays.tensor(before).cpu().numpy()  # on a GPU, the host waits for it
            keys = attempt_keys(keys, (limits[:, REDRAWS] <= before[:, None]).sum(1).astype(np.int32))
        positions = (batch.num_computed_tokens_np + batch.num_scheduled_tokens)[plan.drawing] + row_index
        return self._noise.keys(plan, keys, positions.astype(np.int32))

    def _share(self, token: Array, codes: Array, frames: Array) -> tuple[Array, Array]:
        """Append copies of the first P rows for unconditional requests, with hidden streams masked."""
        num_paired = len(frames)
        if num_paired == 0:
            return token, codes
        xp = self._arrays.xp
        rules = self._arrays.rules
        constants = self._segments.rules.constants
        seen = rules.hide_first(token[:num_paired], constants)
        columns = self._hidden, frames[:, None], self._delays, self._initial
        seen_codes = rules.hide_other(codes[:num_paired], *columns, constants)
        return xp.concatenate([token, seen]), xp.concatenate([codes, seen_codes])

    def _write_state(self, token: Array, slots: Array, rows: Rows, plan: BatchPlan) -> None:
        self._segments.advance(token, rows, plan.may_write)
        self._table[slots] = self._arrays.stack([getattr(rows.state, name) for name in STATE])
