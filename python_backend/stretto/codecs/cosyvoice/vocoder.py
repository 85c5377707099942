"""HiFT vocoder (Li et al., arXiv 2309.09493), which uses a harmonic source and an inverse Fourier transform.

Modules and tensors are named as in published checkpoints (`cosyvoice/hifigan/generator.py`, Apache-2.0).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.cosyvoice.flow import CausalConv, SourceShape, VocoderShape
from stretto.codecs.streaming import AlphaSnake

LOUDEST = 100.0  # largest magnitude of a frequency bin
PITCH_LAYERS = 5
PITCH_KERNEL = 3
# kernels of the first and last convolution
MEL_KERNEL = 7
POST_KERNEL = 7
# number of later frames that the first convolutions of the causal vocoder read
PITCH_AHEAD = 3
MEL_AHEAD = 4


class AheadConv(nn.Conv1d):
    """Convolution padded on the right only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.kernel_size[0] - 1)))


class RepeatConv(nn.Conv1d):
    """Repetition of each frame `rate` times, followed by a causal convolution."""

    def __init__(self, channels: int, out_channels: int, kernel: int, rate: int) -> None:
        super().__init__(channels, out_channels, kernel)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x.repeat_interleave(self.rate, 2), (self.kernel_size[0] - 1, 0)))


class StridedConv(nn.Conv1d):
    """Convolution with a stride, padded on the left by one less than the stride."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.stride[0] - 1, 0)))


def same_length(channels: int, out_channels: int, kernel: int, is_causal: bool, dilation: int = 1) -> nn.Conv1d:
    """Return a convolution that preserves the number of frames, for odd kernel sizes."""
    if is_causal:
        return CausalConv(channels, out_channels, kernel, dilation=dilation)
    return nn.Conv1d(channels, out_channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


class ResidualBlock(nn.Module):
    """Two convolutions per dilation, each preceded by Snake, with a residual connection."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], is_causal: bool = False) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            same_length(channels, channels, kernel, is_causal, dilation) for dilation in dilations
        )
        self.convs2 = nn.ModuleList(same_length(channels, channels, kernel, is_causal) for _ in dilations)
        self.activations1 = nn.ModuleList(AlphaSnake(nn.Parameter(torch.ones(channels))) for _ in dilations)
        self.activations2 = nn.ModuleList(AlphaSnake(nn.Parameter(torch.ones(channels))) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activate, dilated, reactivate, conv in layers:
            x = x + conv(reactivate(dilated(activate(x))))
        return x


class PitchPredictor(nn.Module):
    """Pitch predictor: mel [B, M, T] to Hz [B, T]. The causal variant looks `PITCH_AHEAD` frames ahead."""

    def __init__(self, mels: int, channels: int, is_causal: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(PITCH_LAYERS):
            if is_causal and number == 0:
                layers.append(AheadConv(mels, channels, PITCH_AHEAD + 1))
            else:
                layers.append(same_length(channels if number else mels, channels, PITCH_KERNEL, is_causal))
            layers.append(nn.ELU())
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).transpose(1, 2))[..., 0].abs()


class Source(nn.Module):
    """Excitation for a pitch [B, n] in Hz: sines at the pitch and its harmonics, and noise, mixed to [B, 1, n]."""

    multiples: Tensor

    def __init__(self, shape: SourceShape, sample_rate: int) -> None:
        super().__init__()
        self.shape = shape
        self.sample_rate = sample_rate
        self.l_linear = nn.Linear(shape.harmonics + 1, 1)
        self.register_buffer("multiples", torch.arange(1.0, shape.harmonics + 2)[:, None], persistent=False)

    def forward(self, pitch: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """Return the excitation, [B, 1, n], for a pitch in Hz, [B, n].

        Args:
            phases: Initial phase of each sine, [harmonics + 1, 1].
            noise: Noise of unit variance, [harmonics + 1, n].
        """
        cycles = (pitch[:, None] * self.multiples / self.sample_rate).cumsum(2) % 1
        return self.mixed((2 * math.pi * cycles + phases).sin(), pitch, noise)

    def held(self, pitch: Tensor, cycles: Tensor, samples_per_mel: int, noise: Tensor) -> Tensor:
        """Return the causal vocoder's excitation, [B, 1, n]. Each sine keeps its value within a frame.

        Args:
            pitch: Pitch of each frame in Hz, [B, T].
            cycles: Phase of the fundamental in each frame, in cycles, [B, T], from the method `cycles`.
            noise: Noise in [0, 1), [harmonics + 1, n].
        """
        phases = (cycles[:, None] * self.multiples) % 1
        values = torch.cat([(2 * math.pi * phases).sin().to(noise.dtype), pitch[:, None].to(noise.dtype)], 1)
        values = values.repeat_interleave(samples_per_mel, 2)
        return self.mixed(values[:, :-1], values[:, -1], noise)

    def cycles(self, pitch: Tensor, before: Tensor, samples_per_mel: int) -> Tensor:
        """Return the phase of the fundamental in each frame of the causal vocoder, in cycles, float64 [B, T].

        Args:
            pitch: Pitch of each frame in Hz, float64 [B, T].
            before: Phase in the preceding frame, float64 [B].
        """
        return (before[:, None] + (pitch * (samples_per_mel / self.sample_rate)).cumsum(1)) % 1

    def mixed(self, sines: Tensor, pitch: Tensor, noise: Tensor) -> Tensor:
        """Mix sines [B, harmonics + 1, n] with noise to get the excitation [B, 1, n] for the pitch [B, n]."""
        shape = self.shape
        is_voiced = (pitch[:, None] > shape.threshold).to(sines.dtype)
        level = is_voiced * shape.sigma + (1 - is_voiced) * shape.amplitude / 3
        mixed = shape.amplitude * sines * is_voiced + level * noise
        return self.l_linear(mixed.transpose(1, 2)).tanh().transpose(1, 2)


class Fourier(nn.Module):
    """Short-time Fourier transform with a Hann window, and its inverse, computed as convolutions.

    It replaces torch's `istft`, which synchronises with the device to check that the windows cover every sample.
    """

    forth: Tensor
    back: Tensor
    cover: Tensor

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size = size
        self.hop = hop
        window = torch.hann_window(size, dtype=torch.float64).float().double()
        bins, places = (torch.arange(number, dtype=torch.float64) for number in (size // 2 + 1, size))
        angle = 2 * math.pi * bins[:, None] * places / size
        forth = torch.cat([angle.cos(), -angle.sin()]) * window
        twice = torch.full((size // 2 + 1, 1), 2.0, dtype=torch.float64)
        twice[0] = twice[-1] = 1.0
        back = torch.cat([twice * angle.cos(), -twice * angle.sin()]) * window / size
        for name, table in (("forth", forth), ("back", back), ("cover", window.square()[None])):
            self.register_buffer(name, table[:, None], persistent=False)

    def transform(self, samples: Tensor) -> Tensor:
        """Transform samples [B, 1, n] to real parts followed by imaginary parts, [B, size + 2, n / hop + 1]."""
        half = self.size // 2
        return F.conv1d(F.pad(samples, (half, half), "reflect"), self.forth.to(samples.dtype), stride=self.hop)

    def invert(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Invert spectra with real and imaginary parts [B, size / 2 + 1, t] to samples [B, (t - 1) * hop]."""
        spectra = torch.cat([real, imaginary], 1)
        half = self.size // 2
        back = self.back.to(real.dtype)
        cover = self.cover.to(real.dtype)
        samples = F.conv_transpose1d(spectra, back, stride=self.hop)
        cover = F.conv_transpose1d(torch.ones_like(real[:1, :1]), cover, stride=self.hop)
        return (samples / cover)[:, 0, half:-half]


def source_down(bins: int, width: int, step: int, is_causal: bool) -> nn.Module:
    """Return the layer that reduces the spectrum of the excitation to the frame rate of a stage.

    Args:
        step: Number of frames of the spectrum per frame of the stage.
    """
    if step == 1:
        return nn.Conv1d(bins, width, 1)
    if is_causal:
        return StridedConv(bins, width, 2 * step, step)
    return nn.Conv1d(bins, width, 2 * step, step, padding=step // 2)


class Vocoder(nn.Module):
    """HiFT: mel [B, M, T] to excitation and samples [B, n], with n = T * samples_per_mel.

    Tensors are named as published, with weight norms multiplied out.
    """

    def __init__(self, mels: int, shape: VocoderShape) -> None:
        super().__init__()
        self.shape = shape
        bins = shape.fourier + 2
        is_causal = shape.is_causal
        self.f0_predictor = PitchPredictor(mels, shape.source.pitch_channels, is_causal)
        self.m_source = Source(shape.source, shape.sample_rate)
        self.fourier = Fourier(shape.fourier, shape.hop)
        self.conv_pre: nn.Conv1d = (
            AheadConv(mels, shape.channels, MEL_AHEAD + 1)
            if is_causal
            else same_length(mels, shape.channels, MEL_KERNEL, is_causal=False)
        )
        widths = [shape.channels >> level for level in range(len(shape.rates) + 1)]
        self.ups = nn.ModuleList(
            RepeatConv(widths[level], widths[level + 1], kernel, rate)
            if is_causal
            else nn.ConvTranspose1d(widths[level], widths[level + 1], kernel, rate, padding=(kernel - rate) // 2)
            for level, (rate, kernel) in enumerate(zip(shape.rates, shape.kernels, strict=True))
        )
        steps = [math.prod(shape.rates[level + 1 :]) for level in range(len(shape.rates))]
        self.source_downs = nn.ModuleList(
            source_down(bins, width, step, is_causal) for step, width in zip(steps, widths[1:], strict=True)
        )
        self.source_resblocks = nn.ModuleList(
            ResidualBlock(width, *residual, is_causal)
            for width, residual in zip(widths[1:], shape.source_residuals, strict=True)
        )
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, *residual, is_causal) for width in widths[1:] for residual in shape.residuals
        )
        self.conv_post = same_length(widths[-1], bins, POST_KERNEL, is_causal)

    def source(self, mel: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """Return the excitation [B, 1, n] for mel [B, M, T]; the pitch is constant within a frame."""
        pitch = self.f0_predictor(mel).repeat_interleave(self.shape.samples_per_mel, 1)
        return self.m_source(pitch, phases, noise)

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """Return the samples [B, n] for mel [B, M, T] and the excitation [B, 1, n]."""
        spectrum = self.fourier.transform(source)
        x = self.conv_pre(mel)
        for level, (up, down, shape_source) in enumerate(
            zip(self.ups, self.source_downs, self.source_resblocks, strict=True)
        ):
            x = up(F.leaky_relu(x, self.shape.slope))
            if level == len(self.ups) - 1:
                x = F.pad(x, (1, 0), "reflect")
            x = x + shape_source(down(spectrum))
            number = len(self.shape.residuals)
            residuals = [block(x) for block in self.resblocks[level * number : (level + 1) * number]]
            x = torch.stack(residuals).sum(0) / number
        x = self.conv_post(F.leaky_relu(x))
        magnitude, phase = x.split(self.shape.fourier // 2 + 1, 1)
        magnitude = magnitude.exp().clamp(max=LOUDEST)
        phase = phase.sin()
        samples = self.fourier.invert(magnitude * phase.cos(), magnitude * phase.sin())
        return samples.clamp(-self.shape.limit, self.shape.limit)
