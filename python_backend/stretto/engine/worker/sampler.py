"""Sampler of the array path, replacing vLLM's: draw, share with unconditional rows, record. Nothing waits."""

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from stretto.engine.worker.arrays import Array
from stretto.engine.worker.batch import BatchPlan, PlanArrays, StepRows
from stretto.engine.worker.drawing import RowDraw
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import LIMITS, STATE, SlotState


class SpeechSampler:
    """Sampler of one row of all streams per request, with the attributes that vLLM's runner expects."""

    def __init__(self, stock: Sampler, slots: RunSlots, draw: RowDraw, segments: SegmentState):
        self.penalties_state = stock.penalties_state
        self.compute_nans = False
        self._slots, self._arrays = slots, slots.arrays
        self._draw, self._segments = draw, segments
        tables, arrays = slots.tables, slots.arrays
        self._table, self._codes, self._script = (arrays.of(t) for t in (tables.state, tables.codes, tables.script))
        self._family = segments.family
        hidden, layout = self._family.unconditional.hidden_streams, self._family.layout
        self._hides_first = 0 in hidden
        self._hidden = arrays.upload(np.array([stream in hidden for stream in range(1, layout.num_input_streams)]))
        self._nothing = torch.zeros(slots.num_slots, 1, device=tables.state.device)
        self._none = torch.zeros(slots.num_slots, dtype=torch.int32, device=tables.state.device)

    def add_request(self, req_idx: int, sampling_params: object) -> None:
        """Ignore vLLM's sampling parameters; ours are in the slot tables."""

    def apply_staged_writes(self) -> None:
        """Do nothing: `SpeechModelState` uploads the slot tables."""

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample one row for each request of `batch`; `hidden` [B, H] holds the last hidden states."""
        tokens, codes, cuts, step = self._row(hidden, batch, self._slots.rows(batch))
        self._slots.readback.publish()
        nothing = self._nothing[: batch.num_reqs]
        return SamplerOutput(
            sampled_token_ids=self._arrays.tensor(tokens)[:, None],
            # Codes and cut flags travel in vLLM's asynchronous copy of log-probabilities.
            logprobs_tensors=LogprobsTensors(self._arrays.tensor(codes), nothing, self._arrays.tensor(cuts)),
            num_nans=None,
            num_sampled=step.num_sampled,
            num_rejected=self._none[: batch.num_reqs],
        )

    def _row(
        self, hidden: torch.Tensor, batch: InputBatch, rows: StepRows, place: int = 0
    ) -> tuple[Array, Array, Array, PlanArrays]:
        """Sample one row of each of `rows`: stream 0 [B], streams 1 and up [B, S - 1], and cut flags [B].

        `place` is the number of rows generated before in this step.
        """
        plan, step = self._slots.plan(rows, place)
        if not len(plan.drawing):
            return *self._blank(batch.num_reqs), step
        return *self._sample(hidden, batch, plan, step, place), step

    def _blank(self, num_rows: int) -> tuple[Array, Array, Array]:
        codes, cuts = self._arrays.zeros(num_rows, self._codes.shape[2]), self._arrays.zeros(num_rows)
        return self._arrays.zeros(num_rows), self._arrays.int32(codes), self._arrays.int32(cuts)

    def _sample(
        self, hidden: torch.Tensor, batch: InputBatch, plan: BatchPlan, step: PlanArrays, place: int
    ) -> tuple[Array, Array, Array]:
        """Return stream 0 [B], streams 1 and up [B, S - 1], and flags of segments closed by a limit [B].

        Both requests of a CFG pair get the same draw. The flag is the conditional one's.
        """
        # The row sampled follows the request's last token.
        lengths = self._arrays.of(batch.seq_lens)
        position = lengths[: batch.num_reqs] if step.sampling is None else lengths[step.sampling]
        position = position + place if place else position
        num_drawing = len(plan.drawing)
        slots = step.slots[:num_drawing]
        state = SlotState(*self._table[slots].T)
        rows = Rows(state, step.limits, step.scales, slots, position[:num_drawing])
        token, codes = self._draw(hidden, self._keys(batch, plan, place), plan, step, rows)
        self._write_state(token, slots, rows, plan)
        tokens, all_codes = self._share(token, self._arrays.int32(codes), plan.num_paired)
        self._keep(step.slots, position, tokens, all_codes)
        is_cut = self._arrays.int32(rows.is_cut)
        if step.sampling is None and plan.num_paired == 0:
            return tokens, all_codes, is_cut
        every_token, every_code, every_cut = self._blank(batch.num_reqs)
        if step.sampling is None:
            every_cut[:num_drawing] = is_cut
            return tokens, all_codes, every_cut
        every_token[step.sampling], every_code[step.sampling] = tokens, all_codes
        every_cut[step.sampling[:num_drawing]] = is_cut
        return every_token, every_code, every_cut

    def _keep(self, slots: Array, position: Array, tokens: Array, codes: Array) -> None:
        """Record codes at `position`; vLLM records stream 0 at the end of the step."""
        self._codes[slots, position] = codes

    def _keys(self, batch: InputBatch, plan: BatchPlan, place: int) -> np.ndarray:
        """Return the noise keys [M, S] of the drawing rows, computed on the host."""
        seeds = self._slots.tables.limits[batch.idx_mapping_np[plan.drawing], LIMITS["seed_key"]]
        positions = (batch.num_computed_tokens_np + batch.num_scheduled_tokens)[plan.drawing] + place
        return self._draw.keys(seeds.astype(np.int32), positions.astype(np.int32))

    def _share(self, token: Array, codes: Array, num_paired: int) -> tuple[Array, Array]:
        """Append the draws of the first P rows, with hidden streams masked, for their unconditional rows."""
        if num_paired == 0:
            return token, codes
        xp, layout = self._arrays.xp, self._family.layout
        seen = token[:num_paired]
        if self._hides_first:
            ids = layout.audio[0]
            seen = xp.where((seen >= ids.start) & (seen < ids.stop), self._family.unconditional.null_id, seen)
        seen_codes = xp.where(self._hidden, layout.pad_id, codes[:num_paired])
        return xp.concatenate([token, seen]), xp.concatenate([codes, seen_codes])

    def _write_state(self, token: Array, slots: Array, rows: Rows, plan: BatchPlan) -> None:
        entry = self._segments.advance(token, rows, plan.may_write)
        self._table[slots] = self._arrays.xp.stack([getattr(rows.state, name) for name in STATE], 1)
        if entry is not None:
            self._script[slots, entry] = self._arrays.xp.where(entry > 0, token, 0)
