"""What stands in the place of vLLM's stock sampler: draw, share between halves, write down. No host sync."""

from typing import TYPE_CHECKING

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from python_backend.engine.batch import BatchPlan, plan_batch
from python_backend.engine.drawing import RowDraw
from python_backend.engine.machine import Rows, SegmentMachine
from python_backend.engine.slots import STATE, SlotLimits, SlotScales, SlotState

if TYPE_CHECKING:
    from python_backend.engine.state import SpeechModelState


class SpeechSampler:
    """Samples one row of all streams per request; of the stock sampler it keeps what the runner asks it for."""

    def __init__(self, stock: Sampler, state: "SpeechModelState", draw: RowDraw, machine: SegmentMachine):
        self.penalties_state = stock.penalties_state
        self.compute_nans = False
        self._prefill_len = stock.req_states.prefill_len
        self._state, self._tables = state, state.tables
        self._draw, self._machine = draw, machine
        self._family = machine.family
        hidden, layout = self._family.unconditional.hidden_streams, self._family.layout
        self._hides_first = 0 in hidden
        self._hidden = torch.tensor([s in hidden for s in range(1, layout.num_input_streams)], device=state.device)
        self._nothing = torch.zeros(state.max_num_reqs, 1, device=state.device)

    def add_request(self, req_idx: int, sampling_params: object) -> None:
        """vLLM's own sampling parameters mean nothing here; ours are in the slot tables."""

    def apply_staged_writes(self) -> None:
        """The slot tables are brought to the device by `SpeechModelState`."""

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample one row for each request of `batch` from its last hidden state, [B, H]."""
        plan = plan_batch(batch.idx_mapping_np, self._state.partner, self._state.is_unconditional, self._tables)
        num_sampled = (batch.seq_lens[: batch.num_reqs] >= self._prefill_len.gpu[batch.idx_mapping]).to(torch.int32)
        position = batch.positions[batch.logits_indices] + 1
        rows = self._rows(plan, batch.idx_mapping, position)
        token, codes = self._draw(hidden, plan, rows)
        tokens, all_codes = self._share(token, codes, plan, rows)
        self._write_codes(all_codes, position, num_sampled, batch.idx_mapping)
        self._write_state(token, num_sampled[rows.index] > 0, rows)
        nothing = self._nothing[: batch.num_reqs]
        return SamplerOutput(
            sampled_token_ids=tokens[:, None],
            # The codes travel to the scheduler in the asynchronous copy that vLLM makes of log-probabilities.
            logprobs_tensors=LogprobsTensors(all_codes, nothing, nothing[:, 0]),
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=torch.zeros_like(num_sampled),
        )

    def _rows(self, plan: BatchPlan, slots: torch.Tensor, position: torch.Tensor) -> Rows:
        index = torch.from_numpy(plan.conditional).to(slots.device)
        slots = slots[index]
        state = SlotState(*self._tables.state[slots].unbind(1))
        limits = SlotLimits(*self._tables.limits[slots].unbind(1))
        scales = SlotScales(*self._tables.scales[slots].unbind(1))
        return Rows(state, limits, scales, index, slots, position[index])

    def _share(
        self, token: torch.Tensor, codes: torch.Tensor, plan: BatchPlan, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One draw for both halves, [B] and [B, S - 1]; the unconditional one reads it less what is hidden from it."""
        if plan.num_rows == len(plan.conditional):
            return token, codes
        tokens = token.new_zeros(plan.num_rows)
        all_codes = codes.new_zeros(plan.num_rows, codes.shape[1])
        tokens[rows.index], all_codes[rows.index] = token, codes
        paired = torch.from_numpy(plan.paired).to(token.device)
        other = torch.from_numpy(plan.unconditional).to(token.device)
        seen, pad = token[paired], self._family.layout.pad_id
        if self._hides_first:
            ids = self._family.layout.audio[0]
            seen = torch.where((seen >= ids.start) & (seen < ids.stop), self._family.unconditional.null_id, seen)
        tokens[other] = seen
        all_codes[other] = torch.where(self._hidden, pad, codes[paired])
        return tokens, all_codes

    def _write_codes(
        self, codes: torch.Tensor, position: torch.Tensor, num_sampled: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Where the model will read them; a chunk of a prompt only looked as if it sampled."""
        nowhere = self._tables.codes.shape[1] - 1
        self._tables.codes[slots, torch.where(num_sampled > 0, position, nowhere)] = codes

    def _write_state(self, token: torch.Tensor, sampled: torch.Tensor, rows: Rows) -> None:
        tables = self._tables
        before = tables.state[rows.slots]
        entry = self._machine.advance(token, rows)
        after = torch.stack([getattr(rows.state, name) for name in STATE], 1)
        tables.state[rows.slots] = torch.where(sampled[:, None], after, before)
        if self._machine.script:
            entry = torch.where(sampled, entry, 0)
            tables.script[rows.slots, entry] = torch.where(entry > 0, token, 0)
