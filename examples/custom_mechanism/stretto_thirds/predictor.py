"""Predictor of the second row of a step, which mixes the hidden state with the first row's embedding."""

import torch

from stretto.engine.worker.predictors import BurstBatch, GeneratedRows, SampleRow
from stretto_thirds.steps import TwoRows


class SecondRow:
    """Predictor of the engine's interface `RowPredictor`. `generated` embeds the rows generated so far."""

    def __init__(self, steps: TwoRows, model: object, generated: GeneratedRows, config: object):
        self._generated = generated

    def bind(self, kv_cache_config: object, block_tables: object) -> None:
        """Do nothing, because there is no attention."""

    def capture(self) -> None:
        """Do nothing, because the predictor has no CUDA graph of its own."""

    def fill_slot(self, slot: int, num_read: int) -> None:
        """Do nothing, because nothing is kept by slot."""

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, sample_row: SampleRow) -> None:
        """Sample the second row of each request that has one."""
        if step.num_extra.any():
            mixed = hidden + self._generated.embed(step.batch.idx_mapping_np, step.num_read)
            sample_row(mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + 1e-6), 1)
