"""Steps that generate several rows per request."""

from collections.abc import Callable

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from stretto.engine.columns import Array
from stretto.engine.worker.batch_plan import StepRows
from stretto.engine.worker.predictors import BurstBatch, RowPredictor
from stretto.engine.worker.run_slots import RunSlots

# (hidden states [B, H], rows, index of the row in the step)
# -> stream 0 [B], the others and the state [B, S - 1 + C], cut flags [B].
DrawRow = Callable[[torch.Tensor, StepRows, int], tuple[Array, ...]]


class BurstSampler:
    """Sampler of multi-token steps, with as many rows per request as its schedule specifies."""

    def __init__(self, slots: RunSlots, predictor: RowPredictor):
        self._slots = slots
        self._predictor = predictor
        self._width = slots.rules.max_rows_per_step
        device = slots.tables.state.device
        num_slots = slots.num_slots
        self._nothing = torch.zeros(num_slots, 1, device=device)
        self._none = torch.zeros(num_slots, dtype=torch.int32, device=device)

    def sample(self, hidden: torch.Tensor, batch: InputBatch, draw_row: DrawRow) -> SamplerOutput:
        """Sample the rows of a step from the last hidden states of the requests, [B, H]."""
        slots = self._slots
        arrays = self._slots.arrays
        num_rows = batch.num_reqs
        rows = slots.rows(batch)
        num_read = batch.num_computed_tokens_np.astype(np.int64) + batch.num_scheduled_tokens
        step = BurstBatch(batch, num_read, slots.num_extra(rows, num_read), slots.is_read_by_modules[rows.slots])
        tokens = arrays.zeros(num_rows, self._width)
        num_words = slots.rules.family.layout.num_input_streams - 1 + len(slots.rules.sent_state)
        codes = arrays.int32(arrays.zeros(num_rows, self._width, num_words))
        cuts = arrays.int32(arrays.zeros(num_rows))

        def sample_row(states: torch.Tensor, row_index: int) -> None:
            next_rows = slots.rows_after(rows, step.num_extra >= row_index) if row_index else rows
            tokens[:, row_index], codes[:, row_index], cut = draw_row(states, next_rows, row_index)
            cuts[:] |= cut << row_index  # one bit per row

        sample_row(hidden, 0)
        self._predictor(hidden, step, sample_row)
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
