"""Language model of VibeVoice with its connectors, the diffusion head, and the feedback through decoder and encoder.

    row ─► Qwen2.5 ─► h ─► frame, begin, end or end of reply?
                      └─► head(h, state of the unconditional request) ─► x ─► decoder ─► pcm ─► semantic encoder ─► f
    next row: acoustic connector(x) + semantic connector(f)

The solver is DPM-Solver++ (2M, midpoint; Lu et al., arXiv 2211.01095) for a head that predicts v. The schedule is a
cosine.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from stretto.codecs.vibevoice import Decoder, Encoder, Scale, TokenizerConfig
from stretto.engine.models.latents import LatentMixin, silu

NUM_TIMES = 1000  # of the training's schedule
OFFSET, MAX_BETA = 0.008, 0.999
NUM_WAVES, LONGEST_WAVE = 256, 10000.0  # of the embedding of times
CONNECTOR_EPS = 1e-6


def linear(columns: int, rows: int, bias: bool = False) -> ReplicatedLinear:
    """Return a linear layer, complete on every rank."""
    return ReplicatedLinear(columns, rows, bias=bias, return_bias=False)


class Connector(nn.Module):
    """Embedding of latents or features in the language model's width."""

    def __init__(self, columns: int, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = linear(columns, width, bias=True), linear(width, width, bias=True)
        self.act = RMSNorm(width, eps=CONNECTOR_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return embeddings [N, H] of x [N, D]."""
        return self.linear_2(self.act(self.linear_1(x.contiguous())))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(width, inner), linear(width, inner), linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [N, H] of x [N, H]."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class HeadLayer(nn.Module):
    """Feed-forward layer whose norm and residual are scaled by the condition."""

    def __init__(self, width: int, inner: int, eps: float):
        super().__init__()
        self.norm, self.linear, self.ffn = RMSNorm(width, eps=eps), linear(width, 3 * width), FeedForward(width, inner)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the output [N, H] of x [N, H], for silu of the condition [N, H]."""
        shift, scale, gate = self.linear(condition).chunk(3, -1)
        return x + gate * self.ffn(self.norm(x) * (1 + scale) + shift)


class LastLayer(nn.Module):
    """Scaled norm without a weight of its own, and the projection to a latent."""

    def __init__(self, width: int, num_numbers: int, eps: float):
        super().__init__()
        self.linear_1, self.linear_2, self.eps = linear(width, 2 * width), linear(width, num_numbers), eps

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return v [N, D] of x [N, H], for silu of the condition [N, H]."""
        shift, scale = self.linear_1(condition).chunk(2, -1)
        normed = torch.empty_like(x)
        # vLLM's kernel computes each row independently; sums of torch may depend on the position in the batch.
        torch.ops._C.rms_norm(normed, x.contiguous(), x.new_ones(x.shape[1]), self.eps)
        return self.linear_2(normed * (1 + scale) + shift)


class TimeProjection(nn.Module):
    """Embedding of the solver's times."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = linear(NUM_WAVES, width), linear(width, width)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Return embeddings [n, H] of times [n]."""
        half = NUM_WAVES // 2
        waves = torch.exp(-math.log(LONGEST_WAVE) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
        angles = times[:, None] * waves
        return self.fc2(silu(self.fc1(torch.cat([angles.cos(), angles.sin()], -1))))


class Schedule(NamedTuple):
    """Steps of a solver.

    Attributes:
        times: Embedded time of each step, [n, H].
        alpha: Factor of the latent at each step and after the last one, n + 1 numbers.
        sigma: Factor of the noise, likewise.
        log_ratio: Logarithm of alpha / sigma at each step.
    """

    times: torch.Tensor
    alpha: list[float]
    sigma: list[float]
    log_ratio: list[float]


def cosine_schedule(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times int64 [n], and alpha and sigma float64 [n + 1], of a solver of n steps."""
    at = np.arange(NUM_TIMES + 1) / NUM_TIMES
    bars = np.cos((at + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
    betas = np.minimum(1 - bars[1:] / bars[:-1], MAX_BETA).astype(np.float32)
    products = np.cumprod(1 - betas, dtype=np.float32).astype(np.float64)
    times = np.linspace(0, NUM_TIMES - 1, number + 1).round()[:0:-1].astype(np.int64)
    ratio = np.append(np.sqrt((1 - products[times]) / products[times]), 0.0)
    alpha = 1 / np.sqrt(1 + ratio**2)
    return times, alpha, ratio * alpha


class DiffusionHead(nn.Module):
    """Predictor of latents: a network that predicts v, and its solver. It is a `PairedLatentPredictor`."""

    def __init__(self, config: Mapping[str, Any], width: int, num_numbers: int):
        super().__init__()
        inner, eps = config["intermediate_size"], config["rms_norm_eps"]
        self.noisy_images_proj, self.cond_proj = linear(num_numbers, width), linear(width, width)
        self.timestep_proj = TimeProjection(width)
        self.layers = nn.ModuleList(HeadLayer(width, inner, eps) for _ in range(config["num_hidden_layers"]))
        self.final_layer = LastLayer(width, num_numbers, eps)
        self._schedules = dict[int, Schedule]()

    def forward(
        self,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        unconditional: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the latents, float32 [N, D]; see `PairedLatentPredictor`."""
        found = torch.empty_like(noise)
        for number in sorted(set(steps.tolist())):
            (at,) = (steps == number).nonzero(as_tuple=True)
            (guided,) = (guidance[at] != 1).nonzero(as_tuple=True)
            states = self.cond_proj(torch.cat([hidden[at], unconditional[at][guided]]))
            found[at] = self._solve(noise[at], states, guided, guidance[at][guided, None], max(1, number))
        return found

    def _solve(
        self, x: torch.Tensor, states: torch.Tensor, guided: torch.Tensor, scale: torch.Tensor, number: int
    ) -> torch.Tensor:
        """Return latents [N, D] from noise x [N, D].

        Args:
            x: Noise.
            states: Projected hidden states of N rows, and unconditional ones of the guided rows, [N + G, H].
            guided: Indices of guided rows, [G].
            scale: Their guidance scales, [G, 1].
            number: Number of steps.
        """
        schedule, before = self._schedule(number), x
        alpha, sigma, log_ratio = schedule.alpha, schedule.sigma, schedule.log_ratio
        for step in range(number):
            v = self._velocity(torch.cat([x, x[guided]]), states + schedule.times[step])
            v, free = v[: len(x)], v[len(x) :]
            v[guided] = free + scale * (v[guided] - free)
            data = alpha[step] * x - sigma[step] * v
            if step == number - 1:
                return data
            width, ahead = log_ratio[step + 1] - log_ratio[step], data
            if step:
                ahead = data + 0.5 * width / (log_ratio[step] - log_ratio[step - 1]) * (data - before)
            x = sigma[step + 1] / sigma[step] * x - alpha[step + 1] * math.expm1(-width) * ahead
            before = data
        raise AssertionError("a solver has at least one step")

    def _velocity(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return v [N, D] of latents x [N, D] under conditions [N, H]."""
        x, condition = self.noisy_images_proj(x), silu(condition)
        for layer in self.layers:
            x = layer(x, condition)
        return self.final_layer(x, condition)

    def _schedule(self, number: int) -> Schedule:
        if number not in self._schedules:
            times, alpha, sigma = cosine_schedule(number)
            device = self.cond_proj.get_parameter("weight").device
            embedded = self.timestep_proj(torch.from_numpy(times).float().to(device))
            log_ratio = np.log(alpha[:-1] / sigma[:-1])
            self._schedules[number] = Schedule(embedded, alpha.tolist(), sigma.tolist(), log_ratio.tolist())
        return self._schedules[number]


class Feedback(nn.Module):
    """Acoustic decoder and semantic encoder, frame by frame. It is a `LatentFeedback`."""

    def __init__(self, acoustic: TokenizerConfig, semantic: TokenizerConfig, scale: Scale):
        super().__init__()
        self.decoder, self.encoder, self._scale = Decoder(acoustic), Encoder(semantic), scale
        self.num_kept, self.reach = self.decoder.num_kept + self.encoder.num_kept, acoustic.reach + semantic.reach

    @torch.inference_mode()
    def forward(self, latents: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the semantic features [1, E] of a scaled latent [1, D], and the memory after it."""
        of_decoder, of_encoder = memory.split([self.decoder.num_kept, self.encoder.num_kept], 1)
        pcm, of_decoder = self.decoder.step((latents / self._scale.factor - self._scale.bias)[..., None], of_decoder)
        features, of_encoder = self.encoder.step(pcm, of_encoder)
        return features[..., 0], torch.cat([of_decoder, of_encoder], 1)


class StrettoVibeVoiceForCausalLM(LatentMixin, Qwen2ForCausalLM):
    """VibeVoice for vLLM; selected by `architectures` in config.json."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config, width = vllm_config.model_config.hf_config, vllm_config.model_config.get_hidden_size()
        tokenizers: dict[str, Any] = config.tokenizers
        acoustic, semantic = (TokenizerConfig.from_record(tokenizers[each], each) for each in ("acoustic", "semantic"))
        self.num_numbers = acoustic.size
        self.acoustic_connector = Connector(acoustic.size, width)
        self.semantic_connector = Connector(semantic.size, width)
        self.head = DiffusionHead(config.diffusion_head, width, acoustic.size)
        self.feedback = Feedback(acoustic, semantic, Scale.from_record(tokenizers))

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of frames [N, D]."""
        acoustic = self.acoustic_connector(latents[:, : self.num_numbers])
        return acoustic + self.semantic_connector(latents[:, self.num_numbers + 1 :])

    def embed_voice(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of latents of a recording, in words of frames [N, D]."""
        return self.acoustic_connector(latents[:, : self.num_numbers])

    def latent_predictor(self) -> DiffusionHead:
        """Return the diffusion head."""
        return self.head

    def latent_feedback(self) -> Feedback:
        """Return the acoustic decoder with the semantic encoder."""
        return self.feedback

    @torch.inference_mode()
    def state_of_row(self, token_id: int) -> torch.Tensor:
        """Return the hidden state [H] after a prompt that consists of this id.

        Attention over a single row returns the row's own values, so it is not computed.
        """
        weight = self.model.embed_tokens.get_parameter("weight")
        x, residual = self.embed_input_ids(torch.tensor([token_id], device=weight.device)), None
        for layer in self.model.layers:
            if residual is None:
                residual, x = x, layer.input_layernorm(x)
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
