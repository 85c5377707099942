"""Multi-token steps whose further rows follow a rule instead of MTP modules, with any model."""

import torch

from stretto.engine.worker.predictors import BurstBatch, GeneratedRows, SampleRow


class ForcedRows:
    """Generator of each further row from the previous row and its input."""

    def __init__(self, steps: object, model: object, generated: GeneratedRows, config: object):
        self._generated = generated

    def bind(self, kv_cache_config: object, block_tables: object) -> None:
        """There is nothing to keep."""

    def capture(self) -> None:
        """Do nothing, because there is nothing to capture."""

    def fill_slot(self, slot: int, num_read: int) -> None:
        """There is nothing to keep."""

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, sample_row: SampleRow) -> None:
        """Generate the rows after the first."""
        for place in range(1, 1 + int(step.num_extra.max(initial=0))):
            mixed = hidden + self._generated.embed(step.batch.idx_mapping_np, step.num_read + place - 1)
            hidden = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + 1e-6)
            sample_row(hidden, place)
