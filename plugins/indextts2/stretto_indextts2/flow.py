"""Flow of IndexTTS-2, which converts semantic vectors to a mel spectrogram, given a recording of the voice.

    vectors, 50 per second ─► length regulator ─► conditions, 86 per second ┐
    noise ─► 25 Euler steps along DiT + WaveNet(state, known mel, conditions, style) ─► mel [M, F]

Each step is guided: an estimate without the conditions is subtracted. Frames attend to all frames of the recording and
of the reply. Modules and tensors are named as in the published `s2mel.pth`, with weight norms multiplied out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.rotary_attention import rotated, rotation_at

NUM_MELS = 80
STYLE = 192  # width of the style vector
STEPS = 25
GUIDANCE = 0.7
NUM_WAVES = 256
LONGEST_WAVE = 10_000.0
TIME_SCALE = 1000
ROTARY_BASE = 10_000.0
RMS_EPSILON = 1e-5
NORM_EPSILON = 1e-6
NUM_REGULATOR_LAYERS = 4  # with a norm each
WAVE_KERNEL = 5


@dataclass(frozen=True, slots=True)
class FlowShape:
    """Sizes of the networks.

    Attributes:
        semantic: Width of the semantic vectors.
        channels: Width of the length regulator.
        width: Width of the transformer and the WaveNet.
        inner: Width of the transformer's feed-forward layers.
        wave_layers: Number of the WaveNet's layers.
    """

    semantic: int
    channels: int
    width: int
    layers: int
    heads: int
    inner: int
    wave_layers: int


class LengthRegulator(nn.Module):
    """Repetition of vectors to another number of frames, followed by convolutions with norms over all frames."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        channels = shape.channels
        self.content_in_proj = nn.Linear(shape.semantic, channels)
        layers: list[nn.Module] = []
        for _ in range(NUM_REGULATOR_LAYERS):
            layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, vectors: Tensor, num_frames: int) -> Tensor:
        """Return the conditions [B, F, C] of vectors [B, n, S] for F frames."""
        projected = self.content_in_proj(vectors).transpose(1, 2)
        return self.model(F.interpolate(projected, num_frames)).transpose(1, 2)


class _AdaptiveNorm(nn.Module):
    """Norm whose scale and shift depend on the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_layer = nn.Linear(width, 2 * width)
        self.norm = nn.RMSNorm(width, RMS_EPSILON)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.project_layer(time).chunk(2)
        return scale * self.norm(x) + shift


class _Attention(nn.Module):
    """Self-attention over all frames, with rotary positions for adjacent pairs of channels."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.wqkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.wo = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        query, key, value = self.wqkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        query, key, value = (row.transpose(1, 2) for row in (rotated(query, rotation), rotated(key, rotation), value))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.wo(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """Gated feed-forward layer with SiLU."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.width, shape.inner, bias=False)
        self.w2 = nn.Linear(shape.inner, shape.width, bias=False)
        self.w3 = nn.Linear(shape.width, shape.inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class _Layer(nn.Module):
    """Attention and feed-forward layer. Layers of the second half also read outputs of the first half."""

    def __init__(self, shape: FlowShape, reads_skipped: bool) -> None:
        super().__init__()
        self.attention_norm = _AdaptiveNorm(shape.width)
        self.attention = _Attention(shape)
        self.ffn_norm = _AdaptiveNorm(shape.width)
        self.feed_forward = _FeedForward(shape)
        self.skip_in_linear = nn.Linear(2 * shape.width, shape.width) if reads_skipped else None

    def forward(self, x: Tensor, time: Tensor, rotation: Tensor, skipped: list[Tensor]) -> Tensor:
        if self.skip_in_linear is not None:
            x = self.skip_in_linear(torch.cat([x, skipped.pop()], 2))
        x = x + self.attention(self.attention_norm(x, time), rotation)
        return x + self.feed_forward(self.ffn_norm(x, time))


class _Transformer(nn.Module):
    """Transformer in which layers of the second half also read the outputs of the first half, in reverse order."""

    inv_freq: Tensor

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        middle = shape.layers // 2
        self.num_skipped = middle
        self.layers = nn.ModuleList(_Layer(shape, number > middle) for number in range(shape.layers))
        self.norm = _AdaptiveNorm(shape.width)
        head_width = shape.width // shape.heads
        channels = torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu")
        self.register_buffer("inv_freq", (ROTARY_BASE ** -(channels / head_width)).float(), persistent=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        first = torch.zeros(1, dtype=torch.int64, device=x.device)
        rotation = rotation_at(first, x.shape[1], self.inv_freq, x.dtype)
        skipped = list[Tensor]()
        for number, layer in enumerate(self.layers):
            x = layer(x, time, rotation, skipped)
            if number < self.num_skipped:
                skipped.append(x)
        return self.norm(x, time)


def _time_layers(width: int) -> nn.ModuleDict:
    """Return the layers that embed the waves of a time, under their published name."""
    return nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(NUM_WAVES, width), nn.SiLU(), nn.Linear(width, width))})


def _convolution(channels: int, out_channels: int, kernel: int) -> nn.ModuleDict:
    """Return a convolution without padding under its published name."""
    return nn.ModuleDict({"conv": nn.ModuleDict({"conv": nn.Conv1d(channels, out_channels, kernel)})})


def _convolved(x: Tensor, layer: nn.Module) -> Tensor:
    """Return the output of a layer of `_convolution`, as long as x. Frames are reflected at both ends."""
    conv = layer.get_submodule("conv.conv")
    assert isinstance(conv, nn.Conv1d)
    margin = conv.kernel_size[0] // 2
    return conv(F.pad(x, (margin, margin), "reflect"))


class _WaveNet(nn.Module):
    """Gated convolutions whose outputs are added up."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        width = shape.width
        last = shape.wave_layers - 1
        self.cond_layer = _convolution(width, 2 * width * shape.wave_layers, 1)
        self.in_layers = nn.ModuleList(_convolution(width, 2 * width, WAVE_KERNEL) for _ in range(shape.wave_layers))
        self.res_skip_layers = nn.ModuleList(
            _convolution(width, width if number == last else 2 * width, 1) for number in range(shape.wave_layers)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return [B, H, F] for x [B, H, F] and the time embedding [H]."""
        conditions = _convolved(time[None, :, None], self.cond_layer).chunk(len(self.in_layers), 1)
        total = torch.zeros_like(x)
        for layer, res_skip, condition in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            value, gate = (_convolved(x, layer) + condition).chunk(2, 1)
            outputs = _convolved(value.tanh() * gate.sigmoid(), res_skip)
            if outputs.shape[1] > x.shape[1]:
                residual, outputs = outputs.chunk(2, 1)
                x = x + residual
            total = total + outputs
        return total


class _Final(nn.Module):
    """Modulated norm and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(time).chunk(2)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON) * (1 + scale) + shift)


class Estimator(nn.Module):
    """Transformer and WaveNet that estimate the flow of the mel spectrogram."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        width = shape.width
        self.cond_projection = nn.Linear(shape.channels, width)
        self.cond_x_merge_linear = nn.Linear(width + 2 * NUM_MELS + STYLE, width)
        self.t_embedder = _time_layers(width)
        self.t_embedder2 = _time_layers(width)
        self.transformer = _Transformer(shape)
        self.skip_linear = nn.Linear(width + NUM_MELS, width)
        self.conv1 = nn.Linear(width, width)
        self.wavenet = _WaveNet(shape)
        self.res_projection = nn.Linear(width, width)
        self.final_layer = _Final(width)
        self.conv2 = nn.Conv1d(width, NUM_MELS, 1)

    def forward(self, state: Tensor, known_mel: Tensor, conditions: Tensor, style: Tensor, waves: Tensor) -> Tensor:
        """Return the flow [B, M, F].

        Args:
            state: Current mel, [B, M, F].
            known_mel: Mel of the recording, followed by zeros, [B, M, F].
            conditions: Output of the length regulator, [B, F, C].
            style: Style vector, [B, E].
            waves: Row of `waves_of_time`, [NUM_WAVES].
        """
        time = self.t_embedder["mlp"](waves)
        frames = state.transpose(1, 2)
        repeated = style[:, None].expand(-1, frames.shape[1], -1)
        inputs = torch.cat([frames, known_mel.transpose(1, 2), self.cond_projection(conditions), repeated], 2)
        x = self.transformer(self.cond_x_merge_linear(inputs), time)
        x = self.skip_linear(torch.cat([x, frames], 2))
        waved = self.wavenet(self.conv1(x).transpose(1, 2), self.t_embedder2["mlp"](waves)).transpose(1, 2)
        return self.conv2(self.final_layer(waved + self.res_projection(x), time).transpose(1, 2))


def waves_of_time(times: Tensor) -> Tensor:
    """Return the cosines and sines [n, NUM_WAVES] of times [n] in [0, 1].

    Times should be float64, because float32 results would depend on the processor.
    """
    half = NUM_WAVES // 2
    frequencies = torch.exp(torch.arange(half, dtype=times.dtype, device=times.device) * -math.log(LONGEST_WAVE) / half)
    angles = TIME_SCALE * times[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class Flow(nn.Module):
    """Euler solver with classifier-free guidance, and its estimator."""

    waves: Tensor

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        self.estimator = Estimator(shape)
        # on the CPU, so that it also works if the model is created on the meta device
        times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device="cpu")[:-1]
        self.register_buffer("waves", waves_of_time(times), persistent=False)

    def forward(
        self, noise: Tensor, conditions: Tensor, prompt: Tensor, style: Tensor, on_step: Callable[[], None]
    ) -> Tensor:
        """Return the mel spectrogram of the frames after the prompt, [1, M, F].

        Args:
            noise: Initial value, [1, M, F].
            conditions: Conditions of the prompt and the frames, [1, P + F, C].
            prompt: Mel of the recording, [1, M, P].
            style: Style vector of the recording, [1, E].
        """
        known_mel = F.pad(prompt, (0, noise.shape[2]))
        guided = [torch.cat([tensor, torch.zeros_like(tensor)]) for tensor in (known_mel, conditions, style)]
        state = F.pad(noise, (prompt.shape[2], 0))
        for waves in self.waves.to(noise.dtype):
            flow, free = self.estimator(state.repeat(2, 1, 1), *guided, waves).chunk(2)
            state = state + ((1 + GUIDANCE) * flow - GUIDANCE * free) / STEPS
            state[..., : prompt.shape[2]] = 0
            on_step()
        return state[..., prompt.shape[2] :]
