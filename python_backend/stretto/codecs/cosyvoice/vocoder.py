"""HiFT vocoder (Li et al., arXiv 2309.09493): mel spectrogram to samples by a harmonic source and Fourier transforms.

Modules and tensors are named as in published checkpoints (`cosyvoice/hifigan/generator.py`, Apache-2.0).
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs import convolution
from stretto.codecs.cosyvoice.flow import SourceShape, VocoderShape

LOUDEST = 100.0  # largest magnitude of a frequency bin


class Snake(convolution.Snake):
    """Snake activation x + sin(a x)² / a with one learned a per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return a and 1 / a."""
        return self.alpha, 1 / (self.alpha + 1e-9)


class ResidualBlock(nn.Module):
    """Two convolutions per dilation, each preceded by Snake, with a residual connection."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=each, padding=each * (kernel - 1) // 2) for each in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activate, dilated, reactivate, conv in layers:
            x = x + conv(reactivate(dilated(activate(x))))
        return x


class PitchPredictor(nn.Module):
    """Predictor of the pitch in Hz: mel [B, M, T] -> [B, T]."""

    def __init__(self, mels: int, channels: int) -> None:
        super().__init__()
        widths = [mels, *[channels] * 5]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Conv1d(width, next_width, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).transpose(1, 2))[..., 0].abs()


class Source(nn.Module):
    """Excitation for a pitch [B, n] in Hz: sines at the pitch and its harmonics, and noise, mixed to [B, 1, n]."""

    multiples: Tensor

    def __init__(self, shape: SourceShape, sample_rate: int) -> None:
        super().__init__()
        self.shape, self.sample_rate = shape, sample_rate
        self.l_linear = nn.Linear(shape.harmonics + 1, 1)
        self.register_buffer("multiples", torch.arange(1.0, shape.harmonics + 2)[:, None], persistent=False)

    def forward(self, pitch: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """Return the excitation, [B, 1, n].

        Args:
            pitch: Pitch in Hz, [B, n].
            phases: Initial phase of each sine, [harmonics + 1, 1].
            noise: Noise of unit variance, [harmonics + 1, n].
        """
        shape, pitch = self.shape, pitch[:, None]
        cycles = (pitch * self.multiples / self.sample_rate).cumsum(2) % 1
        is_voiced = (pitch > shape.threshold).to(pitch.dtype)
        sines = shape.amplitude * (2 * math.pi * cycles + phases).sin() * is_voiced
        level = is_voiced * shape.sigma + (1 - is_voiced) * shape.amplitude / 3
        return self.l_linear((sines + level * noise).transpose(1, 2)).tanh().transpose(1, 2)


class Fourier(nn.Module):
    """Short-time Fourier transform with a Hann window, and its inverse, computed as convolutions.

    torch's `istft` synchronises with the device to check that the windows cover every sample.
    """

    forth: Tensor
    back: Tensor
    cover: Tensor

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        window = torch.hann_window(size, dtype=torch.float64).float().double()
        angle = 2 * math.pi * torch.arange(size // 2 + 1)[:, None] * torch.arange(size, dtype=torch.float64) / size
        forth = torch.cat([angle.cos(), -angle.sin()]) * window
        twice = torch.full((size // 2 + 1, 1), 2.0, dtype=torch.float64)
        twice[0] = twice[-1] = 1.0
        back = torch.cat([twice * angle.cos(), -twice * angle.sin()]) * window / size
        for name, table in (("forth", forth), ("back", back), ("cover", window.square()[None])):
            self.register_buffer(name, table[:, None], persistent=False)

    def transform(self, samples: Tensor) -> Tensor:
        """Return the real parts followed by the imaginary parts, [B, size + 2, n / hop + 1], of samples [B, 1, n]."""
        half = self.size // 2
        return F.conv1d(F.pad(samples, (half, half), "reflect"), self.forth.to(samples.dtype), stride=self.hop)

    def invert(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return the samples [B, (t - 1) * hop] of spectra with real and imaginary parts [B, size / 2 + 1, t]."""
        spectra, half = torch.cat([real, imaginary], 1), self.size // 2
        back, cover = self.back.to(real.dtype), self.cover.to(real.dtype)
        samples = F.conv_transpose1d(spectra, back, stride=self.hop)
        cover = F.conv_transpose1d(torch.ones_like(real[:1, :1]), cover, stride=self.hop)
        return (samples / cover)[:, 0, half:-half]


class Vocoder(nn.Module):
    """HiFT: mel [B, M, T] to samples [B, n] and their excitation, n = T * samples_per_mel.

    Tensors are named as published, with weight norms multiplied out.
    """

    def __init__(self, mels: int, shape: VocoderShape) -> None:
        super().__init__()
        self.shape, bins = shape, shape.fourier + 2
        self.f0_predictor = PitchPredictor(mels, shape.source.pitch_channels)
        self.m_source = Source(shape.source, shape.sample_rate)
        self.fourier = Fourier(shape.fourier, shape.hop)
        self.conv_pre = nn.Conv1d(mels, shape.channels, 7, padding=3)
        widths = [shape.channels >> place for place in range(len(shape.rates) + 1)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(widths[place], widths[place + 1], kernel, rate, padding=(kernel - rate) // 2)
            for place, (rate, kernel) in enumerate(zip(shape.rates, shape.kernels, strict=True))
        )
        steps = [math.prod(shape.rates[place + 1 :]) for place in range(len(shape.rates))]
        self.source_downs = nn.ModuleList(
            nn.Conv1d(bins, width, 1) if step == 1 else nn.Conv1d(bins, width, 2 * step, step, padding=step // 2)
            for step, width in zip(steps, widths[1:], strict=True)
        )
        self.source_resblocks = nn.ModuleList(
            ResidualBlock(width, *residual) for width, residual in zip(widths[1:], shape.source_residuals, strict=True)
        )
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, *residual) for width in widths[1:] for residual in shape.residuals
        )
        self.conv_post = nn.Conv1d(widths[-1], bins, 7, padding=3)

    def source(self, mel: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """Return the excitation [B, 1, n] for mel [B, M, T]; the pitch is constant within a frame."""
        pitch = self.f0_predictor(mel).repeat_interleave(self.shape.samples_per_mel, 1)
        return self.m_source(pitch, phases, noise)

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """Return the samples [B, n] for mel [B, M, T] and the excitation [B, 1, n]."""
        spectrum, x = self.fourier.transform(source), self.conv_pre(mel)
        for place, (up, down, shape_source) in enumerate(
            zip(self.ups, self.source_downs, self.source_resblocks, strict=True)
        ):
            x = up(F.leaky_relu(x, self.shape.slope))
            if place == len(self.ups) - 1:
                x = F.pad(x, (1, 0), "reflect")
            x = x + shape_source(down(spectrum))
            number = len(self.shape.residuals)
            residuals = [block(x) for block in self.resblocks[place * number : (place + 1) * number]]
            x = torch.stack(residuals).sum(0) / number
        x = self.conv_post(F.leaky_relu(x))
        magnitude, phase = x.split(self.shape.fourier // 2 + 1, 1)
        magnitude, phase = magnitude.exp().clamp(max=LOUDEST), phase.sin()
        samples = self.fourier.invert(magnitude * phase.cos(), magnitude * phase.sin())
        return samples.clamp(-self.shape.limit, self.shape.limit)
