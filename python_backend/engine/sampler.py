"""One row per request from hidden states: heads, guidance, masks, draw, and the state moved on. No host sync."""

from typing import TYPE_CHECKING

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from python_backend.engine.batch import BatchPlan, plan_batch
from python_backend.engine.heads import StreamHeads
from python_backend.engine.machine import Rows, SegmentMachine
from python_backend.engine.slots import STATE, SlotLimits, SlotScales, SlotState
from python_backend.sampling.draw import DrawParams, draw
from python_backend.sampling.guidance import guide
from python_backend.sampling.noise import stream_keys, uniform
from python_backend.sampling.script import advances

if TYPE_CHECKING:
    from python_backend.engine.state import SpeechModelState


class SpeechSampler:
    """Stands in vLLM's runner in the place of the stock sampler, of which it keeps what the runner asks it for."""

    def __init__(self, stock: Sampler, state: "SpeechModelState", heads: StreamHeads, machine: SegmentMachine):
        self.penalties_state = stock.penalties_state
        self.sampling_states = stock.sampling_states
        self.compute_nans = False
        self._prefill_len = stock.req_states.prefill_len
        self._state, self._tables = state, state.tables
        self._heads, self._machine = heads, machine
        self._family = state.rules.family
        layout = self._family.layout
        self._guided = [stream - 1 for stream in self._family.guided_streams if stream > 0]
        self._guides_first = 0 in self._family.guided_streams
        hidden = self._family.unconditional.hidden_streams
        self._hides_first = 0 in hidden
        self._hidden = torch.tensor([s in hidden for s in range(1, layout.num_input_streams)], device=state.device)

    def add_request(self, req_idx: int, sampling_params: object) -> None:
        """vLLM's own sampling parameters mean nothing here; ours are in the slot tables."""

    def apply_staged_writes(self) -> None:
        """The slot tables are brought to the device by `SpeechModelState`."""

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample one row for each request of `batch` from its last hidden state, [B, H]."""
        plan = plan_batch(batch.idx_mapping_np, self._state.partner, self._state.is_unconditional, self._tables)
        num_sampled = (batch.seq_lens[: batch.num_reqs] >= self._prefill_len.gpu[batch.idx_mapping]).to(torch.int32)
        conditional, rows = self._rows(plan, batch)
        token, codes = self._draw(hidden, conditional, plan, rows)
        tokens, all_codes = self._share(token, codes, conditional, plan, batch.num_reqs)
        self._commit(tokens, all_codes, num_sampled, batch, (conditional, rows))
        nothing = torch.zeros(batch.num_reqs, 1, device=hidden.device)
        return SamplerOutput(
            sampled_token_ids=tokens[:, None],
            # The codes travel to the scheduler in the asynchronous copy that vLLM makes of log-probabilities.
            logprobs_tensors=LogprobsTensors(all_codes, nothing, nothing[:, 0]),
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=torch.zeros_like(num_sampled),
        )

    def _rows(self, plan: BatchPlan, batch: InputBatch) -> tuple[torch.Tensor, Rows]:
        conditional = torch.from_numpy(plan.conditional).to(batch.idx_mapping.device)
        slots = batch.idx_mapping[conditional]
        positions = batch.positions[batch.logits_indices[conditional]] + 1
        state = SlotState(*self._tables.state[slots].unbind(1))
        limits = SlotLimits(*self._tables.limits[slots].unbind(1))
        return conditional, Rows(state, limits, slots, positions)

    def _draw(
        self, hidden: torch.Tensor, conditional: torch.Tensor, plan: BatchPlan, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stream 0 [M] and the streams 1 ... [M, S - 1] of the conditional rows."""
        scales = SlotScales(*self._tables.scales[rows.slots].unbind(1))
        own = hidden[conditional]
        first, auxiliary = self._heads.first(own), self._heads.auxiliary(own)
        if plan.has_pairs:
            first, auxiliary = self._guide(first, auxiliary, hidden, plan, scales.guidance)
        num_streams = self._family.layout.num_output_streams
        keys = stream_keys(rows.limits.seed_key.to(torch.int32), rows.position, num_streams)
        text_params = DrawParams(scales.text_temperature, rows.limits.text_top_k, scales.text_top_p)
        audio_params = DrawParams(scales.audio_temperature, rows.limits.audio_top_k, scales.audio_top_p)
        machine, heads = self._machine, self._heads
        text = machine.mask_text(heads.text(own), rows)
        text = draw(text[:, None], heads.text_ids[None], keys[:, :1], text_params, plan.text).squeeze(1)
        if machine.script:
            entries = self._tables.script[rows.slots]
            stay = machine.stay_column(rows, entries)
            noise = uniform(keys[:, 0], torch.zeros_like(stay))
            audio = machine.follow_script(advances(first, stay, scales.script_temperature, noise), rows, entries)
        else:
            audio = machine.mask_audio(first, rows)
            audio = draw(audio[:, None], heads.first_ids[None], keys[:, :1], audio_params, plan.audio).squeeze(1)
        token = machine.choose(machine.end_text(text, rows), machine.end_audio(audio, rows), rows)
        drawn = draw(auxiliary, heads.codes, keys[:, 1:], audio_params, plan.audio)
        return token, machine.place_codes(drawn, token, rows).to(torch.int32)

    def _guide(
        self, first: torch.Tensor, auxiliary: torch.Tensor, hidden: torch.Tensor, plan: BatchPlan, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both logits with each pair's two halves merged, raw, before any mask."""
        paired = torch.from_numpy(plan.paired).to(hidden.device)
        other = hidden[torch.from_numpy(plan.unconditional).to(hidden.device)]
        scale = scale[paired]
        guided = guide(auxiliary[paired], self._heads.auxiliary(other), scale)
        if len(self._guided) == auxiliary.shape[1]:
            auxiliary[paired] = guided
        else:
            for stream in self._guided:
                auxiliary[paired, stream] = guided[:, stream]
        if self._guides_first:
            first[paired] = guide(first[paired], self._heads.first(other), scale)
        return first, auxiliary

    def _share(
        self, token: torch.Tensor, codes: torch.Tensor, conditional: torch.Tensor, plan: BatchPlan, num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One draw for both halves, [B] and [B, S - 1]; the unconditional one reads it less what is hidden from it."""
        if len(plan.conditional) == num_rows:
            return token, codes
        tokens = token.new_zeros(num_rows)
        all_codes = codes.new_zeros(num_rows, codes.shape[1])
        tokens[conditional], all_codes[conditional] = token, codes
        paired = torch.from_numpy(plan.paired).to(token.device)
        other = torch.from_numpy(plan.unconditional).to(token.device)
        seen, pad = token[paired], self._family.layout.pad_id
        if self._hides_first:
            ids = self._family.layout.audio[0]
            seen = torch.where((seen >= ids.start) & (seen < ids.stop), self._family.unconditional.null_id, seen)
        tokens[other] = seen
        all_codes[other] = torch.where(self._hidden, pad, codes[paired])
        return tokens, all_codes

    def _commit(
        self,
        tokens: torch.Tensor,
        codes: torch.Tensor,
        num_sampled: torch.Tensor,
        batch: InputBatch,
        drawn: tuple[torch.Tensor, Rows],
    ) -> None:
        """Write codes and state of the rows that really sampled; a chunk of a prompt only looked as if."""
        tables, nowhere = self._tables, self._tables.codes.shape[1] - 1
        position = batch.positions[batch.logits_indices] + 1
        position = torch.where(num_sampled > 0, position, nowhere)
        tables.codes[batch.idx_mapping, position] = codes
        conditional, rows = drawn
        entry = self._machine.advance(tokens[conditional], rows)
        sampled = (num_sampled > 0)[conditional]
        before = tables.state[rows.slots]
        after = torch.stack([getattr(rows.state, name) for name in STATE], 1)
        tables.state[rows.slots] = torch.where(sampled[:, None], after, before)
        if self._machine.script:
            entry = torch.where(sampled, entry, 0)
            tables.script[rows.slots, entry] = torch.where(entry > 0, tokens[conditional], 0)
