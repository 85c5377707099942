"""Conditional flow matching (arXiv 2210.02747) for the CosyVoice decoders: U-Net and conformer.

The U-Net estimates the flow; the conformer computes its input from speech tokens, and has no convolution modules.
Modules and tensors are named as in published checkpoints (Apache-2.0, see `cosyvoice/transformer` in
https://github.com/FunAudioLLM/CosyVoice). Attention with relative positions follows Dai et al., arXiv 1901.02860.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Sizes of the conformer.

    Attributes:
        block: Number of tokens per block; attention is limited to the same and previous blocks. None for full
            attention.
    """

    width: int
    heads: int
    inner: int
    layers: int
    block: int | None = None
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class EstimatorShape:
    """Sizes of the U-Net that estimates the flow.

    Attributes:
        blocks: Number of transformers after each residual block.
        is_meanflow: True if the estimator returns the mean flow between two times (MeanFlow, arXiv 2505.13447).
        is_causal: True if convolutions are causal and norms are per frame. Transformers attend to all frames in either
            case.
    """

    channels: tuple[int, ...]
    head_width: int
    heads: int
    blocks: int
    mids: int
    is_causal: bool = False
    is_meanflow: bool = False


@dataclass(frozen=True, slots=True)
class SourceShape:
    """Parameters of the excitation: sines at the pitch and its harmonics, and noise.

    Attributes:
        threshold: Pitch above which a frame is voiced, in Hz.
        sigma: Noise level in voiced frames; in unvoiced frames, the level is a third of the amplitude.
    """

    harmonics: int
    amplitude: float
    sigma: float
    threshold: float
    pitch_channels: int


@dataclass(frozen=True, slots=True)
class VocoderShape:
    """Sizes of HiFT: upsampling by `rates`, residual blocks (kernel, dilations) and a Fourier transform.

    The transform has `fourier` samples per window and a hop of `hop` samples.

    Attributes:
        is_causal: True for a causal vocoder. Its convolutions are padded on the left, except the first one in
            the vocoder and the first one in the pitch predictor. It repeats samples instead of using transposed
            convolutions.
    """

    channels: int
    sample_rate: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    residuals: tuple[tuple[int, tuple[int, ...]], ...]
    source_residuals: tuple[tuple[int, tuple[int, ...]], ...]
    fourier: int
    hop: int
    slope: float
    limit: float
    source: SourceShape
    is_causal: bool = False

    @property
    def samples_per_mel(self) -> int:
        """Number of samples per frame of the mel spectrogram."""
        return math.prod(self.rates) * self.hop


SEEDS = {"flow": 42, "source": 43, "phases": 44}


def gaussian(columns: int, rows: int, seed: int) -> Tensor:
    """Return Gaussian noise of unit variance, [rows, columns], that is identical on every machine.

    The result for fewer columns is a prefix of the result for more. On the meta device, nothing is drawn.
    """
    if torch.empty(0).is_meta:
        return torch.empty(rows, columns)
    return _drawn(columns, rows, seed)


@lru_cache(2)  # tables of the flow and the vocoder; a conversion creates a codec several times
def _drawn(columns: int, rows: int, seed: int) -> Tensor:
    drawn = np.random.default_rng(seed).standard_normal((columns, rows), dtype=np.float32)
    return torch.from_numpy(drawn.T.copy())


def noise_tables(mels: int, shape: VocoderShape, flow_frames: int, vocoder_frames: int) -> dict[str, Tensor]:
    """Return the noise tables of the flow and the vocoder.

    Args:
        flow_frames: Maximum number of mel frames in the flow, including the prompt.
        vocoder_frames: Maximum number of mel frames in the vocoder.

    Returns:
        noise: Initial value of the flow, [M, flow_frames].
        source_noise: Noise of the excitation for `vocoder_frames` frames, [harmonics + 1, n].
        phases: Initial phase of each sine, [harmonics + 1, 1].
    """
    sines = shape.source.harmonics + 1
    phases = np.random.default_rng(SEEDS["phases"]).uniform(-np.pi, np.pi, (sines, 1))
    phases[0] = 0  # the fundamental starts at phase 0
    return {
        "noise": gaussian(flow_frames, mels, SEEDS["flow"]),
        "source_noise": gaussian(vocoder_frames * shape.samples_per_mel, sines, SEEDS["source"]),
        "phases": torch.from_numpy(phases),
    }


GROUPS = 8


class CausalConv(nn.Conv1d):
    """Convolution padded on the left only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


def convolution(channels: int, out_channels: int, shape: EstimatorShape) -> nn.Conv1d:
    """Return a convolution with kernel size 3 that preserves the number of frames, causal if `shape.is_causal`."""
    return CausalConv(channels, out_channels, 3) if shape.is_causal else nn.Conv1d(channels, out_channels, 3, padding=1)


class Turned(nn.Module):
    """Layer that swaps the last two dimensions: [B, C, T] to [B, T, C] and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Block(nn.Module):
    """Convolution, norm (group norm over all frames, or layer norm per frame) and Mish."""

    def __init__(self, channels: int, out_channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        norm: list[nn.Module] = [nn.GroupNorm(GROUPS, out_channels)]
        if shape.is_causal:
            norm = [Turned(), nn.LayerNorm(out_channels), Turned()]
        self.block = nn.Sequential(convolution(channels, out_channels, shape), *norm, nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two blocks with the time embedding added between them, and a pointwise residual path."""

    def __init__(self, channels: int, out_channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(4 * shape.channels[0], out_channels))
        self.block1 = Block(channels, out_channels, shape)
        self.block2 = Block(out_channels, out_channels, shape)
        self.res_conv = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.block1(x) + self.mlp(time)[..., None]
        return self.block2(hidden) + self.res_conv(x)


class Attention(nn.Module):
    """Self-attention over all frames; `to_out[1]` is the dropout used in training."""

    def __init__(self, channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        self.heads = shape.heads
        inner = shape.heads * shape.head_width
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, channels), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Projection(nn.Module):
    """Linear layer followed by GELU."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Feed-forward layer with four times the width; `net[1]` replaces training's dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Projection(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection: x [B, T, C]."""

    def __init__(self, channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, shape)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Resample(nn.Module):
    """Convolution that halves the number of frames (rounding up) or doubles it."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stage(nn.ModuleList):
    """Residual block, transformers and, except in the middle stage, a resampling layer."""

    def __init__(self, channels: int, out_channels: int, shape: EstimatorShape, *resample: nn.Module) -> None:
        transformers = nn.Sequential(*(Transformer(out_channels, shape) for _ in range(shape.blocks)))
        super().__init__([ResidualBlock(channels, out_channels, shape), transformers, *resample])

    def run(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the residual block and the transformers to x [B, C, T]."""
        return self[1](self[0](x, time).transpose(1, 2)).transpose(1, 2)


class TimeInput(nn.Module):
    """Time embedding: sinusoids passed through two linear layers with SiLU."""

    def __init__(self, waves: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(waves, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class Estimator(nn.Module):
    """U-Net that returns the flow [B, M, T]. Its input [B, 4 M, T] stacks state, condition, speaker and known mel."""

    def __init__(self, mels: int, shape: EstimatorShape) -> None:
        super().__init__()
        widths = shape.channels
        channels = 4 * mels
        self.time_mlp = TimeInput(channels, 4 * widths[0])
        self.time_embed_mixer = nn.Linear(8 * widths[0], 4 * widths[0], bias=False) if shape.is_meanflow else None
        down: list[nn.Module] = []
        for level, width in enumerate(widths):
            is_last = level == len(widths) - 1
            shrink = convolution(width, width, shape) if is_last else Resample(nn.Conv1d(width, width, 3, 2, padding=1))
            down.append(Stage(channels, width, shape, shrink))
            channels = width
        self.down_blocks = nn.ModuleList(down)
        self.mid_blocks = nn.ModuleList(Stage(channels, channels, shape) for _ in range(shape.mids))
        self.up_blocks = nn.ModuleList(_rising(shape))
        self.final_block = Block(widths[0], widths[0], shape)
        self.final_proj = nn.Conv1d(widths[0], mels, 1)

    def forward(self, x: Tensor, waves: Tensor, until: Tensor | None = None) -> Tensor:
        """Return the flow [B, M, T].

        Args:
            waves: Row of `waves_of_time`, [4 M].
            until: Row of `waves_of_time` for the time at which a mean-flow step ends; None for other flows.
        """
        time = self.time_mlp(waves)[None]
        skipped = list[Tensor]()
        if self.time_embed_mixer is not None:
            assert until is not None
            time = self.time_embed_mixer(torch.cat([time, self.time_mlp(until)[None]], 1))
        for stage in _stages(self.down_blocks):
            x = stage.run(x, time)
            skipped.append(x)
            x = stage[2](x)
        for stage in _stages(self.mid_blocks):
            x = stage.run(x, time)
        for stage in _stages(self.up_blocks):
            skip = skipped.pop()
            x = stage[2](stage.run(torch.cat([x[..., : skip.shape[-1]], skip], 1), time))
        return self.final_proj(self.final_block(x))


def _stages(blocks: nn.ModuleList) -> Iterator[Stage]:
    for stage in blocks:
        assert isinstance(stage, Stage)
        yield stage


def _rising(shape: EstimatorShape) -> list[nn.Module]:
    """Return the up-sampling stages; each also reads the output of the down-sampling stage with its resolution."""
    widths = [*reversed(shape.channels), shape.channels[0]]
    stages = list[nn.Module]()
    for level, (width, next_width) in enumerate(itertools.pairwise(widths)):
        is_last = level == len(widths) - 2
        grow = (
            convolution(next_width, next_width, shape)
            if is_last
            else Resample(nn.ConvTranspose1d(next_width, next_width, 4, 2, padding=1))
        )
        stages.append(Stage(2 * width, next_width, shape, grow))
    return stages


STEPS = 10  # as in the authors' flow.py and flow_matching.py
MEANFLOW_STEPS = 2
GUIDANCE = 0.7  # of the decoders that follow CosyVoice 2


class Matching(nn.Module):
    """Euler solver for the flow, including its estimator, with classifier-free guidance (Ho and Salimans).

    With guidance strength g, a step follows (1 + g) * conditional - g * unconditional. A mean flow is solved in two
    unguided steps of equal length.
    """

    waves: Tensor
    on_step: Callable[[], None] | None = None

    def __init__(self, estimator: nn.Module, num_waves: int, guidance: float, is_meanflow: bool = False) -> None:
        """Create the solver.

        Args:
            estimator: Network that returns the flow [2 B, M, T] for the stacked state and conditions [2 B, 4 M, T] and
                a row of `waves_of_time`.
            num_waves: Width of `waves_of_time`.
            is_meanflow: True if the estimator also reads the row for the time at which a step ends, and returns the
                mean flow over the step.
        """
        super().__init__()
        self.estimator = estimator
        self.guidance = guidance
        self.is_meanflow = is_meanflow
        # on the CPU, so that it also works if the model is created on the meta device
        num_steps = MEANFLOW_STEPS if is_meanflow else STEPS
        even = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device="cpu")
        times = even if is_meanflow else 1 - torch.cos(even * 0.5 * math.pi)
        self.strides = times.diff().tolist()
        self.register_buffer("waves", waves_of_time(times, num_waves), persistent=False)

    def forward(
        self, noise: Tensor, goal: Tensor, speaker: Tensor, prompt: Tensor, contexts: Sequence[object] = ()
    ) -> Tensor:
        """Return the mel spectrogram, [B, M, T].

        For unconditional estimates, zeros replace goal, speaker and prompt.

        Args:
            noise: Initial value, [B, M, T].
            goal: Encoder output μ, [B, M, T].
            speaker: Speaker vector, repeated over the frames, [B, M, T].
            prompt: Known mel frames at the beginning, followed by zeros, [B, M, T].
            contexts: Earlier frames, which the estimator of a guided flow reads in each step; empty if there are none.
        """
        conditions = torch.cat([goal, speaker, prompt], 1)
        state = noise
        rows = self.waves.to(noise.dtype)
        if self.is_meanflow:
            for waves, until, stride in zip(rows[:-1], rows[1:], self.strides, strict=True):
                state = state + stride * self.estimator(torch.cat([state, conditions], 1), waves, until)
                self._report()
            return state
        conditions = torch.cat([conditions, torch.zeros_like(conditions)])
        for step, (waves, stride) in enumerate(zip(rows[:-1], self.strides, strict=True)):
            stacked = torch.cat([state.repeat(2, 1, 1), conditions], 1)
            context = contexts[step : step + 1]
            flow, free = self.estimator(stacked, waves, *context).chunk(2)
            state = state + stride * ((1 + self.guidance) * flow - self.guidance * free)
            self._report()
        return state

    def _report(self) -> None:
        if self.on_step is not None:
            self.on_step()


def waves_of_time(times: Tensor, width: int) -> Tensor:
    """Return the sines and cosines [n, width] of times [n] in [0, 1], as in Matcha's `SinusoidalPosEmb`.

    The frequencies have the precision of `times`, because those in float32 would depend on the processor.
    """
    waves = torch.arange(width // 2, device=times.device, dtype=times.dtype)
    frequencies = torch.exp(waves * -(math.log(10_000) / (width // 2 - 1)))
    angle = 1000 * times[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], 1)


LONGEST_WAVE = 10_000.0


class RelativeAttention(nn.Module):
    """Self-attention with relative positions, over all tokens or only those in the same and previous blocks."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.block = shape.block
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, width // self.heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, width // self.heads))

    def forward(self, x: Tensor, distances: Tensor) -> Tensor:
        """Return attention outputs [B, T, H] for x [B, T, H] and `wave_of_distances` [2 T - 1, H]."""
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        places = self.linear_pos(distances).unflatten(1, (self.heads, -1))
        by_distance = torch.einsum("bthd,phd->bhtp", query + self.pos_bias_v, places)
        length = x.shape[1]
        steps = torch.arange(length, device=x.device)
        index = length - 1 - steps[:, None] + steps
        bias = by_distance.gather(3, index.expand(*by_distance.shape[:3], -1)) / math.sqrt(query.shape[-1])
        if self.block is not None:
            is_later = steps // self.block > (steps // self.block)[:, None]
            bias = bias.masked_fill(is_later, -math.inf)
        attended = F.scaled_dot_product_attention(
            (query + self.pos_bias_u).transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            bias,
        )
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class ConformerFeedForward(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.w_1 = nn.Linear(shape.width, shape.inner)
        self.w_2 = nn.Linear(shape.inner, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(shape)
        self.feed_forward = ConformerFeedForward(shape)
        self.norm_mha = nn.LayerNorm(shape.width, shape.epsilon)
        self.norm_ff = nn.LayerNorm(shape.width, shape.epsilon)

    def forward(self, x: Tensor, distances: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), distances)
        return x + self.feed_forward(self.norm_ff(x))


class TokenInput(nn.Module):
    """Projection of token vectors to the encoder's width; `out[2]` is the dropout used in training."""

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(token_width, width), nn.LayerNorm(width), nn.Identity())
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


def wave_of_distances(length: int, width: int, device: torch.device) -> Tensor:
    """Return the sinusoidal encoding of the distances length - 1 to 1 - length, float64 [2 length - 1, width].

    Sines and cosines alternate. Angles in float32 would depend on the processor.
    """
    distance = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float64)
    even = torch.arange(0, width, 2, device=device, dtype=torch.float64)
    angle = distance[:, None] * torch.exp(even * -(math.log(LONGEST_WAVE) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


AHEAD = 3  # tokens


class LookAhead(nn.Module):
    """Convolution over a token and the following ones, then a causal convolution, with a residual connection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, inner, AHEAD + 1)
        self.conv2 = nn.Conv1d(inner, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return both convolutions of x [B, T, H], added to x. The result of a token depends on AHEAD later ones."""
        ahead = F.leaky_relu(self.conv1(F.pad(x.transpose(1, 2), (0, AHEAD))))
        return x + self.conv2(F.pad(ahead, (2, 0))).transpose(1, 2)
