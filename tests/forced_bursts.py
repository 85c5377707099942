"""A model whose further rows follow a rule, without MTP modules: for tests of multi-token steps."""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.registry import ModelRegistry

from stretto.engine.models.backbones import StrettoQwen3ForCausalLM
from stretto.engine.worker.predictors import BurstBatch, GeneratedRows, SampleRow

ARCHITECTURE = "ForcedBurstsForCausalLM"


class ForcedRows:
    """Generates each further row from the input of the previous row, and from that row."""

    def __init__(self, said: GeneratedRows):
        self._said = said

    def bind(self, kv_cache_config: object, block_tables: object) -> None:
        """There is nothing to keep."""

    def capture(self) -> None:
        """There is nothing to capture."""

    def place(self, slot: int, num_read: int) -> None:
        """There is nothing to keep."""

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, sample_row: SampleRow) -> None:
        """Generate the rows after the first."""
        for place in range(1, 1 + int(step.num_extra.max(initial=0))):
            mixed = hidden + self._said.embed(step.batch.idx_mapping_np, step.num_read + place - 1)
            hidden = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + 1e-6)
            sample_row(hidden, place)


class ForcedBurstsForCausalLM(StrettoQwen3ForCausalLM):
    """Qwen3 with such rows."""

    def row_predictor(self, said: GeneratedRows, vllm_config: VllmConfig) -> ForcedRows:
        return ForcedRows(said)


def register() -> str:
    """Name the model to vLLM, in this process; returns the name that a checkpoint's config.json gives it."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, ForcedBurstsForCausalLM)
    return ARCHITECTURE
