"""Model for tests of multi-token steps, whose further rows follow a rule instead of MTP modules."""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.registry import ModelRegistry

from stretto.engine.models.backbones import StrettoQwen3ForCausalLM
from stretto.engine.worker.predictors import BurstBatch, GeneratedRows, SampleRow

ARCHITECTURE = "ForcedBurstsForCausalLM"


class ForcedRows:
    """Generator of each further row from the previous row and its input."""

    def __init__(self, said: GeneratedRows):
        self._said = said

    def bind(self, kv_cache_config: object, block_tables: object) -> None:
        """There is nothing to keep."""

    def capture(self) -> None:
        """Do nothing, because there is nothing to capture."""

    def place(self, slot: int, num_read: int) -> None:
        """There is nothing to keep."""

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, sample_row: SampleRow) -> None:
        """Generate the rows after the first."""
        for place in range(1, 1 + int(step.num_extra.max(initial=0))):
            mixed = hidden + self._said.embed(step.batch.idx_mapping_np, step.num_read + place - 1)
            hidden = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + 1e-6)
            sample_row(hidden, place)


class ForcedBurstsForCausalLM(StrettoQwen3ForCausalLM):
    """Qwen3 with rows from `ForcedRows`."""

    def row_predictor(self, said: GeneratedRows, vllm_config: VllmConfig) -> ForcedRows:
        return ForcedRows(said)


def register() -> str:
    """Register the model with vLLM in this process; return its name in a checkpoint's config.json."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, ForcedBurstsForCausalLM)
    return ARCHITECTURE
