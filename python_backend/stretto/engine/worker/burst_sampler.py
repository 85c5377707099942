"""Samplers of several rows per step: the first from the model, further ones from MCTP modules."""

from collections.abc import Callable

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from stretto.engine.worker.arrays import Array
from stretto.engine.worker.batch import StepRows
from stretto.engine.worker.drawing import RowDraw
from stretto.engine.worker.row_predictor import BurstBatch, RowPredictor
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.sampler import SpeechSampler
from stretto.engine.worker.segment_state import SegmentState
from stretto.engine.worker.step_graphs import StepGraphs
from stretto.engine.worker.step_program import StepProgram
from stretto.engine.worker.step_sampler import StepSampler
from stretto.engine.worker.step_table import Variant

# (hidden states [B, H], rows, index of the row in the step) -> stream 0 [B], the others [B, S - 1], cut flags [B].
SayRow = Callable[[torch.Tensor, StepRows, int], tuple[Array, Array, Array]]


class Bursts:
    """Multi-token step: each request gets as many rows as its schedule defines, at most W."""

    def __init__(self, slots: RunSlots, predictor: RowPredictor):
        self._slots, self._predictor, self._width = slots, predictor, slots.rules.max_rows_per_step
        device, num_slots = slots.tables.state.device, slots.num_slots
        self._nothing = torch.zeros(num_slots, 1, device=device)
        self._none = torch.zeros(num_slots, dtype=torch.int32, device=device)

    def sample(self, hidden: torch.Tensor, batch: InputBatch, say_row: SayRow) -> SamplerOutput:
        """Sample rows for each request of `batch`; `hidden` [B, H] holds the last hidden states."""
        slots, arrays, num_rows = self._slots, self._slots.arrays, batch.num_reqs
        rows = slots.rows(batch)
        num_read = batch.num_computed_tokens_np.astype(np.int64) + batch.num_scheduled_tokens
        step = BurstBatch(batch, num_read, slots.num_extra(rows, num_read), slots.is_read_by_modules[rows.slots])
        tokens = arrays.zeros(num_rows, self._width)
        codes = arrays.int32(arrays.zeros(num_rows, self._width, slots.rules.family.layout.num_input_streams - 1))
        cuts = arrays.int32(arrays.zeros(num_rows))

        def say(states: torch.Tensor, place: int) -> None:
            says = slots.rows_behind(rows, step.num_extra >= place) if place else rows
            tokens[:, place], codes[:, place], cut = say_row(states, says, place)
            cuts[:] |= cut << place  # one bit per row

        say(hidden, 0)
        self._predictor(hidden, step, say)
        slots.readback.publish()
        num_sampled = np.where(rows.samples, 1 + step.num_extra, 0).astype(np.int32)
        return SamplerOutput(
            sampled_token_ids=arrays.tensor(tokens),
            logprobs_tensors=LogprobsTensors(
                arrays.tensor(codes).flatten(1), self._nothing[:num_rows], arrays.tensor(cuts)
            ),
            num_nans=None,
            num_sampled=arrays.tensor(arrays.upload(num_sampled)),
            num_rejected=self._none[:num_rows],
        )


class BurstSampler(SpeechSampler):
    """Sampler of several rows per step on the array path (numpy or torch)."""

    def __init__(self, stock: Sampler, slots: RunSlots, draw: RowDraw, segments: SegmentState, predictor: RowPredictor):
        super().__init__(stock, slots, draw, segments)
        self._bursts = Bursts(slots, predictor)
        self._tokens = slots.arrays.of(stock.req_states.all_token_ids.gpu)

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample the rows of a step; `hidden` [B, H] holds the last hidden states."""
        return self._bursts.sample(hidden, batch, lambda states, says, place: self._row(states, batch, says, place)[:3])

    def _keep(self, slots: Array, position: Array, tokens: Array, codes: Array) -> None:
        """Record the rows, including stream 0, which later rows of this step read."""
        super()._keep(slots, position, tokens, codes)
        self._tokens[slots, position] = self._arrays.int32(tokens)


class BurstStepSampler(StepSampler):
    """Sampler of several rows per step on the kernel path; each row is one run of the step program."""

    def __init__(
        self,
        stock: Sampler,
        slots: RunSlots,
        program: StepProgram,
        graphs: StepGraphs[Variant],
        predictor: RowPredictor,
    ):
        super().__init__(stock, slots, program, graphs)
        self._bursts = Bursts(slots, predictor)

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample the rows of a step; `hidden` [B, H] holds the last hidden states."""
        lengths = batch.seq_lens[: batch.num_reqs]

        def say_row(states: torch.Tensor, says: StepRows, place: int) -> tuple[Array, Array, Array]:
            self._run(states, lengths + place if place else lengths, says)
            tokens, codes, cuts, _ = self._results(self._program.results, batch.num_reqs)
            return tokens, codes, cuts

        return self._bursts.sample(hidden, batch, say_row)
