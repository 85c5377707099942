"""A sampler of several rows a step: the first from the model's hidden states, the others as a predictor says them."""

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from stretto.engine.worker.arrays import Array
from stretto.engine.worker.drawing import RowDraw
from stretto.engine.worker.row_predictor import BurstBatch, RowPredictor
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.sampler import SpeechSampler
from stretto.engine.worker.segment_state import SegmentState


class BurstSampler(SpeechSampler):
    """Samples of each request as many rows as its schedule has in this step, W at the most."""

    def __init__(self, stock: Sampler, slots: RunSlots, draw: RowDraw, segments: SegmentState, predictor: RowPredictor):
        super().__init__(stock, slots, draw, segments)
        self._predictor, self._width = predictor, slots.rules.max_rows_per_step
        self._tokens = slots.arrays.of(stock.req_states.all_token_ids.gpu)

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample for each request of `batch`: the first row from its last hidden state, [B, H]."""
        slots, arrays, num_rows = self._slots, self._arrays, batch.num_reqs
        rows = slots.rows(batch)
        num_read = batch.num_computed_tokens_np.astype(np.int64) + batch.num_scheduled_tokens
        step = BurstBatch(batch, num_read, slots.num_extra(rows, num_read), slots.is_read_by_modules[rows.slots])
        tokens = arrays.zeros(num_rows, self._width)
        codes = arrays.int32(arrays.zeros(num_rows, self._width, self._codes.shape[2]))
        cuts = arrays.int32(arrays.zeros(num_rows))

        def say(states: torch.Tensor, place: int) -> None:
            says = slots.rows_behind(rows, step.num_extra >= place) if place else rows
            tokens[:, place], codes[:, place], cut, _ = self._row(states, batch, says, place)
            cuts[:] |= cut << place  # a bit for each row

        say(hidden, 0)
        self._predictor(hidden, step, say)
        slots.readback.publish()
        num_sampled = np.where(rows.samples, 1 + step.num_extra, 0).astype(np.int32)
        nothing = self._nothing[:num_rows]
        return SamplerOutput(
            sampled_token_ids=arrays.tensor(tokens),
            logprobs_tensors=LogprobsTensors(arrays.tensor(codes).flatten(1), nothing, arrays.tensor(cuts)),
            num_nans=None,
            num_sampled=arrays.tensor(arrays.upload(num_sampled)),
            num_rejected=self._none[:num_rows],
        )

    def _keep(self, slots: Array, position: Array, tokens: Array, codes: Array) -> None:
        """Write down what was said, stream 0 as well: the rows that follow in this step are drawn and said by it."""
        super()._keep(slots, position, tokens, codes)
        self._tokens[slots, position] = self._arrays.int32(tokens)
