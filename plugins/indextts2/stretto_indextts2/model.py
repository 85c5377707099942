"""IndexTTS-2's GPT-2: vLLM's model without its own positions, and with an additional norm before the head."""

import torch
from torch import nn
from vllm.config import VllmConfig

from stretto.engine.models.backbones import StrettoGpt2ForCausalLM

FINAL_NORM_EPS = 1e-5  # of `final_norm` in the authors' code


class NoPositions(nn.Module):
    """Table of positions that adds nothing, because a stream of the rows has them."""

    def forward(self, positions: torch.Tensor) -> float:
        return 0.0


class StrettoIndexTts2ForCausalLM(StrettoGpt2ForCausalLM):
    """GPT-2 of IndexTTS-2, which `architectures` in config.json selects."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        width = vllm_config.model_config.get_hidden_size()
        final_norm = nn.LayerNorm(width, eps=FINAL_NORM_EPS)
        self.transformer.wpe = NoPositions()  # type: ignore[assignment]
        self.transformer.ln_f = nn.Sequential(self.transformer.ln_f, final_norm)  # type: ignore[assignment]
