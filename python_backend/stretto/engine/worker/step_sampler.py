"""GPU replacement for vLLM's sampler: two device copies, one CUDA-graph replay, one copy of the results."""

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from stretto.engine.worker.batch import StepRows
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.step_graphs import StepGraphs
from stretto.engine.worker.step_program import StepProgram
from stretto.engine.worker.step_table import Variant


class StepSampler:
    """Sampler of one row of all streams per request, as `SpeechSampler`, in a few capturable launches."""

    def __init__(self, stock: Sampler, slots: RunSlots, program: StepProgram, graphs: StepGraphs[Variant]):
        self.penalties_state = stock.penalties_state
        self.compute_nans = False
        self._slots, self._program, self._graphs = slots, program, graphs
        device = program.results.device
        self._nothing = torch.zeros(program.num_rows, 1, device=device)
        self._none = torch.zeros(program.num_rows, dtype=torch.int32, device=device)

    def add_request(self, req_idx: int, sampling_params: object) -> None:
        """Ignore vLLM's sampling parameters; ours are in the slot tables."""

    def apply_staged_writes(self) -> None:
        """Do nothing: `SpeechModelState` uploads the slot tables."""

    def capture(self) -> None:
        """Capture steps of all sizes before the first request."""
        self._program.columns.clear()
        self._graphs.capture(self._program.variants)

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample one row for each request of `batch`; `hidden` [B, H] holds the last hidden states."""
        num_rows = batch.num_reqs
        if self._run(hidden, batch.seq_lens[:num_rows], self._slots.rows(batch)):
            self._slots.readback.publish()
        return self._output(num_rows)

    def _run(self, hidden: torch.Tensor, lengths: torch.Tensor, rows: StepRows) -> bool:
        """Run a step at positions `lengths` [B]; return True if a reply may enter audio unknown to the host."""
        slots, program, num_rows = self._slots, self._program, len(rows.slots)
        variant, is_unsure = program.columns.update(rows, slots.partner, slots.is_unconditional, slots.version)
        program.hidden[:num_rows].copy_(hidden)
        program.lengths[:num_rows].copy_(lengths)
        self._graphs.run(variant, num_rows)
        return is_unsure

    def _results(self, results: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, ...]:
        """Split the results: stream 0 [B], the others [B, S - 1], cut flags and numbers sampled [B]."""
        size, width = self._program.num_rows, self._program.num_others
        codes = results[size : size + num_rows * width].view(num_rows, width)
        cuts, sampled = (results[size * (width + at) :][:num_rows] for at in (1, 2))
        return results[:num_rows], codes, cuts, sampled

    def _output(self, num_rows: int) -> SamplerOutput:
        """Return a copy of the results, which the next step overwrites while vLLM still transfers them."""
        tokens, codes, cuts, sampled = self._results(self._program.results.clone(), num_rows)
        return SamplerOutput(
            sampled_token_ids=tokens[:, None],
            # Codes and cut flags travel in vLLM's asynchronous copy of log-probabilities.
            logprobs_tensors=LogprobsTensors(codes, self._nothing[:num_rows], cuts),
            num_nans=None,
            num_sampled=sampled,
            num_rejected=self._none[:num_rows],
        )
