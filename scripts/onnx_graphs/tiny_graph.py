"""ONNX graph of the bundled codec's decoder. It equals `codecs.tiny`, with Fourier transforms as real matrices.

The pitch needs float64 (see `codecs.tiny.codec`), but onnxruntime has neither a float64 convolution nor a float64 erf.
The graph therefore computes convolutions as sums of shifted frames, and erf as a sum of sines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.onnx_graphs.graphs import fourier
from stretto.codecs.tiny import codec as excitation
from stretto.codecs.tiny.codec import (
    BLOCK,
    FFT_SIZE,
    HOP,
    LEAD,
    NUM_MELS,
    SPAN,
    VOICING_SLOPE,
    ConvBlock,
    TinyCodec,
    Trunk,
)

ERF_STEP, ERF_TERMS, ERF_END = math.pi / 12.5, 25, 6.0  # beyond ERF_END, erf is 1 in float64


def erf(x: Tensor) -> Tensor:
    """Return the float64 error function with an error of at most 1e-14.

    It is computed as the Fourier series of a square wave that is smoothed by a Gaussian:

    2 / pi * (h x + sum over n >= 1 of exp(-(n h)^2) / n * sin(2 n h x)) for |x| < pi / h - ERF_END (Salzer, 1951). The
    sum uses Clenshaw's recurrence, with one sine and one cosine for all terms.
    """
    x = x.clamp(-ERF_END, ERF_END)
    angle = 2 * ERF_STEP * x
    twice = 2 * angle.cos()
    this, previous = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(ERF_TERMS, 0, -1):
        this, previous = math.exp(-((n * ERF_STEP) ** 2)) / n + twice * this - previous, this
    return 2 / math.pi * (ERF_STEP * x + this * angle.sin())


def block(layer: ConvBlock, hidden: Tensor) -> Tensor:
    """Return the output of a trunk block, for input float64 [B, T, C]."""
    frames, (before, after) = hidden.shape[1], layer.padding
    padded = F.pad(hidden, (0, 0, before, after))
    taps = layer.mix.weight[:, 0].unbind(1)
    mixed = torch.stack([padded[:, i : i + frames] * tap for i, tap in enumerate(taps)]).sum(0)
    if layer.mix.bias is not None:
        mixed = mixed + layer.mix.bias
    wide = layer.widen(layer.norm(mixed))
    return hidden + layer.gain * layer.narrow(wide * (1 + erf(wide / math.sqrt(2))) / 2)


def trunk(layers: Trunk, features: Tensor) -> Tensor:
    """Return the output of a trunk in float64."""
    hidden = layers.enter(features)
    for layer in layers.blocks:
        assert isinstance(layer, ConvBlock), type(layer)
        hidden = block(layer, hidden)
    return layers.leave(layers.norm(hidden))


def inverse_fourier(size: int) -> tuple[Tensor, Tensor]:
    """Return matrices for the real and the imaginary part whose sum is irfft(n=size).

    Both are float64 [size // 2 + 1, size].
    """
    weight = torch.full((size // 2 + 1, 1), 2.0 / size, dtype=torch.float64)
    weight[0] = weight[-1] = 1 / size
    cosines, sines = fourier(size, size)
    return weight * cosines, weight * sines


def phase_matrix() -> Tensor:
    """Return the matrix [bins, bins] from log gains to the phase of the minimum-phase response.

    The matrix folds the cepstrum (see `filters`).
    """
    cepstrum = inverse_fourier(FFT_SIZE)[0]
    folded = torch.cat([cepstrum[:, :1], 2 * cepstrum[:, 1 : FFT_SIZE // 2], cepstrum[:, FFT_SIZE // 2, None]], dim=1)
    return folded @ fourier(FFT_SIZE // 2 + 1, FFT_SIZE)[1].T


class TinyGraph(nn.Module):
    """Decoder for a window of frames.

    Its outputs are the samples of all frames, including context frames, and the phase after the last frame to output.
    """

    neighbours: Tensor
    phase: Tensor
    longer: Tensor  # maps the spectrum of a response to the spectrum of the zero-padded response, for the longer block
    span_spectrum: Tensor
    blocks: Tensor

    def __init__(self, codec: TinyCodec) -> None:
        super().__init__()
        self.codec = codec
        places = (torch.arange(HOP, dtype=torch.float64) + 0.5) / HOP - 0.5
        neighbours = torch.stack([(-places).clamp(min=0), 1 - places.abs(), places.clamp(min=0)])
        matrices = {
            "neighbours": neighbours,
            "phase": phase_matrix(),
            "longer": torch.cat(inverse_fourier(FFT_SIZE)) @ torch.cat(fourier(FFT_SIZE, BLOCK)).T,
            "span_spectrum": torch.hann_window(SPAN, dtype=torch.float64)[:, None] * torch.cat(fourier(SPAN, BLOCK)).T,
            "blocks": torch.cat(inverse_fourier(BLOCK)),
        }
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix if name == "neighbours" else matrix.float())

    def upsample(self, frames: Tensor) -> Tensor:
        """Interpolate frames [B, T] to samples [B, T * HOP], as `excitation.upsample` does."""
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        after = torch.cat([frames[:, 1:], frames[:, -1:]], dim=1)
        return (torch.stack([before, frames, after], dim=2) @ self.neighbours.to(frames.dtype)).flatten(1)

    def apply_filters(self, sources: Tensor, log_gain: Tensor) -> Tensor:
        """Apply `filters.apply_filters` with the minimum-phase filters of log gains [B, C, T, bins]."""
        angle, gain = log_gain @ self.phase, log_gain.exp()
        response = torch.cat([gain * angle.cos(), gain * angle.sin()], dim=-1)
        filter_real, filter_imaginary = (response @ self.longer).chunk(2, dim=-1)
        pieces = F.pad(sources, (LEAD, LEAD)).unflatten(-1, (-1, HOP))
        spans = torch.cat([pieces[:, :, :-1], pieces[:, :, 1:]], dim=-1)
        real, imaginary = (spans @ self.span_spectrum).chunk(2, dim=-1)
        spectrum = torch.cat(
            [real * filter_real - imaginary * filter_imaginary, real * filter_imaginary + imaginary * filter_real], -1
        )
        count = -(-BLOCK // HOP)
        blocks = F.pad(spectrum.sum(1) @ self.blocks, (0, count * HOP - BLOCK)).unflatten(-1, (count, HOP))
        added = torch.stack([F.pad(blocks[:, :, i], (0, 0, i, count - i)) for i in range(count)]).sum(0).flatten(1)
        return added[:, LEAD : LEAD + sources.shape[2]]

    def forward(self, codes: Tensor, left: Tensor, last: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Decode a window.

        Args:
            codes: Codes, [B, K, T].
            left: First frame to output, [1].
            last: Index after the last frame to output, [1].
            first: Stream position of the first frame to output, [B].
            state: Phase at the first frame to output, [B, 1].

        Returns:
            Samples of all T frames, and the next state.
        """
        vocoder, hop = self.codec.vocoder, self.codec.spec.samples_per_frame
        stacked = self.codec.quantiser.decode(codes)
        mel = stacked.unflatten(2, (self.codec.config.mel_frames, NUM_MELS)).flatten(1, 2)
        log_hz, logit = trunk(vocoder.pitch_trunk, vocoder._normalise(mel)).unbind(-1)
        pitch_hz = self.upsample((log_hz + 5.0).exp().clamp(excitation.LOWEST_HZ, excitation.HIGHEST_HZ))
        turned = excitation.cycles(pitch_hz)
        phases = turned + (state - turned.index_select(1, left * hop))
        log_gain = vocoder.log_gains(mel.float())
        voicing = self.upsample((VOICING_SLOPE * logit + 0.5).clamp(0, 1).float())
        voiced = excitation.pulses(phases[:, :-1], pitch_hz).float() * voicing
        position = ((first - left) * hop)[:, None] + torch.arange(pitch_hz.shape[1])
        noise = vocoder.noise[position % excitation.NOISE_PERIOD]
        pcm = self.apply_filters(torch.stack([voiced, noise], dim=1), log_gain)
        after = phases.index_select(1, last * hop)
        return pcm, after - after.floor()
