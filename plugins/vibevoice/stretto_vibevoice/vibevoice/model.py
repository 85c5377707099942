"""VibeVoice language model with connectors, diffusion head, and feedback through the decoder and semantic encoder.

    row ─► Qwen2.5 ─► h ─► frame, begin, end or end of reply?
                      └─► head(h, state of the unconditional request) ─► x ─► decoder ─► pcm ─► semantic encoder ─► f
    next row: acoustic connector(x) + semantic connector(f)

The solver is DPM-Solver++ (2M, midpoint; Lu et al., arXiv 2211.01095) for a head that predicts v, with a cosine noise
schedule.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from stretto.engine.models.latents import LatentMixin, SolverPlan, SolverTable, silu
from stretto_vibevoice.codec import Decoder, Encoder, LatentScale, TokenizerConfig
from stretto_vibevoice.vibevoice.mechanism.draw import StretchReadout, readout_of

NUM_TIMES = 1000  # in the training schedule
OFFSET = 0.008
MAX_BETA = 0.999
# for the time embedding
NUM_WAVES = 256
LONGEST_WAVE = 10000.0
CONNECTOR_EPS = 1e-6


def linear(columns: int, rows: int, bias: bool = False) -> ReplicatedLinear:
    """Return a linear layer that is replicated on every rank."""
    return ReplicatedLinear(columns, rows, bias=bias, return_bias=False)


class Connector(nn.Module):
    """Projection of latents or features to the language model's width."""

    def __init__(self, columns: int, width: int):
        super().__init__()
        self.linear_1 = linear(columns, width, bias=True)
        self.linear_2 = linear(width, width, bias=True)
        self.act = RMSNorm(width, eps=CONNECTOR_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(x.contiguous())))


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = linear(width, inner)
        self.up_proj = linear(width, inner)
        self.down_proj = linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class HeadLayer(nn.Module):
    """Feed-forward layer with a norm and a residual connection that the condition scales."""

    def __init__(self, width: int, inner: int, eps: float):
        super().__init__()
        self.norm = RMSNorm(width, eps=eps)
        self.linear = linear(width, 3 * width)
        self.ffn = FeedForward(width, inner)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the output [N, H] for x [N, H] and silu of the condition [N, H]."""
        shift, scale, gate = self.linear(condition).chunk(3, -1)
        return x + gate * self.ffn(self.norm(x) * (1 + scale) + shift)


class LastLayer(nn.Module):
    """Norm that the condition scales, followed by the projection to a latent."""

    def __init__(self, width: int, num_numbers: int, eps: float):
        super().__init__()
        self.linear_1 = linear(width, 2 * width)
        self.linear_2 = linear(width, num_numbers)
        self.eps = eps

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return v [N, D] for x [N, H] and silu of the condition [N, H]."""
        shift, scale = self.linear_1(condition).chunk(2, -1)
        if x.device.type == "cpu":
            x = x.contiguous()
            normed = torch.empty_like(x)
            # vLLM's kernel computes each row independently; torch's sums may depend on the position in the batch.
            torch.ops._C.rms_norm(normed, x, x.new_ones(x.shape[1]), self.eps)
        else:
            normed = x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)
        return self.linear_2(normed * (1 + scale) + shift)


class TimeProjection(nn.Module):
    """Embedding of solver times."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = linear(NUM_WAVES, width)
        self.fc2 = linear(width, width)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [n, H] of times [n]."""
        half = NUM_WAVES // 2
        waves = torch.exp(-math.log(LONGEST_WAVE) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
        angles = times[:, None] * waves
        return self.fc2(silu(self.fc1(torch.cat([angles.cos(), angles.sin()], -1))))


def cosine_schedule(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times, int64 [n], and alpha and sigma, float64 [n + 1], for a solver with n steps."""
    at = np.arange(NUM_TIMES + 1) / NUM_TIMES
    bars = np.cos((at + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
    betas = np.minimum(1 - bars[1:] / bars[:-1], MAX_BETA).astype(np.float32)
    products = np.cumprod(1 - betas, dtype=np.float32).astype(np.float64)
    times = np.linspace(0, NUM_TIMES - 1, number + 1).round()[:0:-1].astype(np.int64)
    ratio = np.append(np.sqrt((1 - products[times]) / products[times]), 0.0)
    alpha = 1 / np.sqrt(1 + ratio**2)
    return times, alpha, ratio * alpha


def solver_factors(number: int) -> torch.Tensor:
    """Return the factors of each step of a solver with `number` steps, float32 [n, 5].

    A step computes data = f0 x - f1 v, then x = f2 x - f3 (data + f4 (data - previous data)). After the last step, x
    equals data.
    """
    _, alpha, sigma = cosine_schedule(number)
    log_ratio = np.log(alpha[:-1] / sigma[:-1])
    factors = np.zeros((number, 5))
    factors[:, 0] = alpha[:-1]
    factors[:, 1] = sigma[:-1]
    factors[-1, 3] = -1
    width = np.diff(log_ratio)
    factors[:-1, 2] = sigma[1:-1] / sigma[:-2]
    factors[:-1, 3] = alpha[1:-1] * np.expm1(-width)
    factors[1:-1, 4] = 0.5 * width[1:] / width[:-1]
    return torch.from_numpy(factors).float()


class DiffusionHead(nn.Module):
    """Latent predictor (`GuidedLatentPredictor`): a network that predicts v, and a solver."""

    def __init__(self, config: Mapping[str, Any], width: int, num_numbers: int):
        super().__init__()
        inner = config["intermediate_size"]
        eps = config["rms_norm_eps"]
        self.noisy_images_proj = linear(num_numbers, width)
        self.cond_proj = linear(width, width)
        self.timestep_proj = TimeProjection(width)
        self.layers = nn.ModuleList(HeadLayer(width, inner, eps) for _ in range(config["num_hidden_layers"]))
        self.final_layer = LastLayer(width, num_numbers, eps)

    def prepare(self, steps: range) -> "DiffusionHead":
        """Precompute the steps of all permitted solvers, and return this head."""
        device = self.cond_proj.get_parameter("weight").device

        def times(number: int) -> torch.Tensor:
            return torch.from_numpy(cosine_schedule(number)[0]).float()

        self._times = SolverTable(times, steps, lambda rows: self.timestep_proj(rows.to(device)))
        self._factors = SolverTable(solver_factors, steps, lambda rows: rows.to(device))
        return self

    def forward(
        self,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        plan: SolverPlan,
        other: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the latents, float32 [N, D], guided by the hidden states `other` (`GuidedLatentPredictor`)."""
        number = len(noise)
        scale = guidance[:, None]
        states = self.cond_proj(torch.cat([hidden, other]) if plan.is_guided else hidden)
        x = before = noise
        for step in range(plan.num_steps):
            times = self._times.at(step, steps)
            if plan.is_guided:
                v = self._velocity(torch.cat([x, x]), states + torch.cat([times, times]))
                free = v[number:]
                v = v[:number]
                v = torch.where(scale == 1, v, free + scale * (v - free))
            else:
                v = self._velocity(x, states + times)
            f = self._factors.at(step, steps)[:, :, None].unbind(1)
            data = f[0] * x - f[1] * v
            x = torch.where(step < steps[:, None], f[2] * x - f[3] * (data + f[4] * (data - before)), x)
            before = data
        return x

    def _velocity(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return v [N, D] for latents x [N, D] and conditions [N, H]."""
        x = self.noisy_images_proj(x)
        condition = silu(condition)
        for layer in self.layers:
            x = layer(x, condition)
        return self.final_layer(x, condition)


class Feedback(nn.Module):
    """Acoustic decoder, then semantic encoder, computed frame by frame (a `LatentFeedback`)."""

    def __init__(self, acoustic: TokenizerConfig, semantic: TokenizerConfig, scale: LatentScale):
        super().__init__()
        self.decoder = Decoder(acoustic)
        self.encoder = Encoder(semantic)
        self._scale = scale
        self.num_kept = self.decoder.num_kept + self.encoder.num_kept
        self.reach = acoustic.reach + semantic.reach

    @torch.inference_mode()
    def forward(self, latents: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the semantic features [N, E] of scaled latents [N, D], and the updated memories."""
        of_decoder, of_encoder = memory.split([self.decoder.num_kept, self.encoder.num_kept], 1)
        pcm, of_decoder = self.decoder.step((latents / self._scale.factor - self._scale.bias)[..., None], of_decoder)
        features, of_encoder = self.encoder.step(pcm, of_encoder)
        return features[..., 0], torch.cat([of_decoder, of_encoder], 1)


class StrettoVibeVoiceForCausalLM(LatentMixin, Qwen2ForCausalLM):
    """VibeVoice for vLLM; selected by `architectures` in config.json."""

    has_end = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        width = vllm_config.model_config.get_hidden_size()
        tokenizers: dict[str, Any] = config.tokenizers
        acoustic, semantic = (TokenizerConfig.from_record(tokenizers[name], name) for name in ("acoustic", "semantic"))
        self.num_numbers = acoustic.size
        self.acoustic_connector = Connector(acoustic.size, width)
        self.semantic_connector = Connector(semantic.size, width)
        self.head = DiffusionHead(config.diffusion_head, width, acoustic.size)
        self.feedback = Feedback(acoustic, semantic, LatentScale.from_record(tokenizers))

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of frames [N, D]."""
        acoustic = self.acoustic_connector(latents[:, : self.num_numbers])
        return acoustic + self.semantic_connector(latents[:, self.num_numbers + 1 :])

    def embed_voice(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of a recording's latents, which have the layout of frames [N, D]."""
        return self.acoustic_connector(latents[:, : self.num_numbers])

    def latent_predictor(self) -> DiffusionHead:
        assert self.family.layout.latents is not None
        return self.head.prepare(self.family.layout.latents.steps)

    def readout_of(self, predictor: Any, rules: Any) -> StretchReadout:
        """Return the readout. Its head has a frame, the marks around a stretch of audio, and the end of the reply."""
        return readout_of(self, predictor, rules)

    @torch.inference_mode()
    def state_of_row(self, token_id: int) -> torch.Tensor:
        """Return the hidden state [H] after a prompt that consists of this id.

        Attention to a single row returns that row's values, so it is not computed.
        """
        weight = self.model.embed_tokens.get_parameter("weight")
        x = self.embed_input_ids(torch.tensor([token_id], device=weight.device))
        residual = None
        for layer in self.model.layers:
            if residual is None:
                residual = x
                x = layer.input_layernorm(x)
            else:
                x, residual = layer.input_layernorm(x, residual)
            attention = layer.self_attn
            qkv, _ = attention.qkv_proj(x)
            values = qkv[:, attention.q_size + attention.kv_size :].unflatten(1, (attention.num_kv_heads, -1))
            values = values.repeat_interleave(attention.num_heads // attention.num_kv_heads, 1)
            x, _ = attention.o_proj(values.flatten(1))
            x, residual = layer.post_attention_layernorm(x, residual)
            x = layer.mlp(x)
        x, _ = self.model.norm(x, residual)
        return x[0].clone()
