"""Random model whose frames are latents, with Llama layers and a flow head of two layers."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.registry import ModelRegistry

from stretto.engine.models.latents import LatentMixin, silu
from stretto.engine.worker.batch_plan import SolverPlan
from stretto.testing.checkpoints import write_checkpoint
from tests.speech_families import LATENTS

ARCHITECTURE = "LatentLlamaForCausalLM"
NUM_WORDS, INNER = 8, 32


class FlowHead(nn.Module):
    """Flow head: Euler steps along a velocity that depends on the hidden state and the time."""

    def __init__(self, width: int):
        super().__init__()
        self.condition = ReplicatedLinear(width, INNER, bias=False, return_bias=False)
        self.enter = ReplicatedLinear(NUM_WORDS, INNER, return_bias=False)
        self.leave = ReplicatedLinear(INNER, NUM_WORDS, bias=False, return_bias=False)

    def forward(self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, plan: SolverPlan) -> torch.Tensor:
        x, condition, number = noise, self.condition(hidden), steps[:, None].float()
        for step in range(plan.num_steps):
            velocity = self.leave(silu(condition + self.enter(x) + step / number))
            x = torch.where(step < steps[:, None], x + velocity / number, x)
        return x


class LatentLlamaForCausalLM(LatentMixin, LlamaForCausalLM):
    """Llama with a connector from latents and a flow head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        width = vllm_config.model_config.get_hidden_size()
        self.connector = ReplicatedLinear(NUM_WORDS, width, bias=False, return_bias=False)
        self.flow = FlowHead(width)

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.connector(latents)

    def latent_predictor(self) -> FlowHead:
        return self.flow


def write(folder: Path, hidden: int, layers: int) -> Path:
    """Write a random checkpoint; the end of speech is detected in about one frame of twelve."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, LatentLlamaForCausalLM)
    write_checkpoint(folder, LATENTS, LATENTS.name, hidden, layers, backbone="llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [ARCHITECTURE], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    del weights["lm_head.weight"]

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale * shape[-1] ** -0.5

    weights |= {
        "connector.weight": random(hidden, NUM_WORDS),
        "flow.condition.weight": random(INNER, hidden),
        "flow.enter.weight": random(INNER, NUM_WORDS),
        "flow.enter.bias": random(INNER),
        "flow.leave.weight": random(NUM_WORDS, INNER, scale=2.0),
        "end_of_speech.weight": random(hidden, scale=3.0),
        "end_of_speech.bias": torch.tensor([-2.5]),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def reference_latent(
    weights: dict[str, torch.Tensor], hidden: torch.Tensor, noise: torch.Tensor, n: int
) -> torch.Tensor:
    """Compute the latent [D] for a hidden state [H] with torch."""
    x = noise
    for step in range(n):
        inner = weights["flow.condition.weight"] @ hidden + weights["flow.enter.weight"] @ x
        x = x + weights["flow.leave.weight"] @ F.silu(inner + weights["flow.enter.bias"] + step / n) / n
    return x
