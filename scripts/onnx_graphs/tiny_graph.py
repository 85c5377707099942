"""ONNX graph of the bundled codec's decoder. It equals `codecs.tiny`, with Fourier transforms as real matrices.

The pitch needs float64 (see `codecs.tiny.codec`), but onnxruntime has neither a float64 convolution nor a float64 erf.
The graph therefore computes convolutions as sums of shifted hops, and erf as a sum of sines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.onnx_graphs.graphs import fourier
from stretto.codecs.tiny.codec import (
    BINS,
    FFT_SIZE,
    HIGHEST_HZ,
    HOP,
    HOPS,
    LOWEST_HZ,
    MAX_LOG,
    NOISE_PERIOD,
    OVERLAP,
    Block,
    TinyCodec,
    Trunk,
    cycles,
    pulses,
)

SPANS = FFT_SIZE // HOP  # hops in a transform
# beyond ERF_END, erf is 1 in float64
ERF_STEP = math.pi / 12.5
ERF_TERMS = 25
ERF_END = 6.0


def erf(x: Tensor) -> Tensor:
    """Return the float64 error function with an error of at most 1e-14.

    It is computed as the Fourier series of a square wave that is smoothed by a Gaussian:

    2 / pi * (h x + sum over n >= 1 of exp(-(n h)^2) / n * sin(2 n h x)) for |x| < pi / h - ERF_END (Salzer, 1951). The
    sum uses Clenshaw's recurrence, with one sine and one cosine for all terms.
    """
    x = x.clamp(-ERF_END, ERF_END)
    angle = 2 * ERF_STEP * x
    twice = 2 * angle.cos()
    this = torch.zeros_like(x)
    previous = torch.zeros_like(x)
    for n in range(ERF_TERMS, 0, -1):
        this, previous = math.exp(-((n * ERF_STEP) ** 2)) / n + twice * this - previous, this
    return 2 / math.pi * (ERF_STEP * x + this * angle.sin())


def gelu(x: Tensor) -> Tensor:
    """Return the GELU of float32 or float64 values."""
    return x * (1 + erf(x / math.sqrt(2))) / 2 if x.dtype == torch.float64 else F.gelu(x)


def block(layer: Block, hidden: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the last inputs of a block, as `Block` does."""
    whole = torch.cat([before, hidden], 1)
    hops = hidden.shape[1]
    taps = layer.mix.weight[:, 0].unbind(1)
    mixed = torch.stack([whole[:, i : i + hops] * tap for i, tap in enumerate(taps)]).sum(0)
    if layer.mix.bias is not None:
        mixed = mixed + layer.mix.bias
    wide = gelu(layer.widen(layer.norm(mixed)))
    return hidden + layer.gain * layer.narrow(wide), whole[:, hops:]


def trunk(layers: Trunk, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the next state of a trunk, as `Trunk` does."""
    hidden = layers.enter(frames).unflatten(-1, (HOPS, layers.channels)).flatten(1, 2)
    before = state.to(hidden.dtype).unflatten(1, (len(layers.blocks), layers.kernel - 1, layers.channels))
    after = []
    for index, layer in enumerate(layers.blocks):
        assert isinstance(layer, Block), type(layer)
        hidden, last = block(layer, hidden, before[:, index])
        after.append(last)
    return layers.leave(layers.norm(hidden)), torch.stack(after, 1).flatten(1)


def inverse_fourier(size: int) -> tuple[Tensor, Tensor]:
    """Return float64 [size // 2 + 1, size] matrices for real and imaginary parts, whose sum is irfft(n=size)."""
    weight = torch.full((size // 2 + 1, 1), 2.0 / size, dtype=torch.float64)
    weight[0] = weight[-1] = 1 / size
    cosines, sines = fourier(size, size)
    return weight * cosines, weight * sines


def polar(log_magnitude: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of a number, given its angle and its magnitude's logarithm, limited to MAX_LOG."""
    magnitude = log_magnitude.clamp(max=MAX_LOG).exp()
    return magnitude * angle.cos(), magnitude * angle.sin()


class TinyGraph(nn.Module):
    """Decoder of frames after a state, whose outputs are samples and the next state."""

    transform: Tensor
    inverse: Tensor

    def __init__(self, codec: TinyCodec) -> None:
        super().__init__()
        self.codec = codec
        window = codec.decoder.window
        self.register_buffer("transform", (torch.cat(fourier(FFT_SIZE, FFT_SIZE)) * window).T.float())
        self.register_buffer("inverse", (torch.cat(inverse_fourier(FFT_SIZE)) * (window / 1.5)).float())

    def upsample(self, curve: Tensor) -> Tensor:
        """Interpolate hops [B, T + 2] to samples [B, T * HOP], as `codecs.tiny.codec.upsample` does."""
        neighbours = torch.stack([curve[:, :-2], curve[:, 1:-1], curve[:, 2:]], dim=2)
        return (neighbours @ self.codec.decoder.neighbours.to(curve.dtype)).flatten(1)

    def spectrum(self, source: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return real and imaginary part of the spectra [B, T, BINS] of a source [B, T * HOP + OVERLAP]."""
        pieces = source.float().unflatten(-1, (-1, HOP))
        hops = pieces.shape[1] - SPANS + 1
        spans = torch.cat([pieces[:, i : i + hops] for i in range(SPANS)], dim=-1)
        real, imaginary = (spans @ (self.transform * scale)).split(BINS, dim=-1)
        return real, imaginary

    def overlap(self, real: Tensor, imaginary: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Add inverse transforms of spectra to the incomplete sum before them, as the decoder does."""
        blocks = (torch.cat([real, imaginary], -1) @ self.inverse).unflatten(-1, (SPANS, HOP))
        parts = [F.pad(blocks[:, :, i], (0, 0, i, SPANS - 1 - i)) for i in range(SPANS)]
        size = blocks.shape[1] * HOP
        total = torch.stack(parts).sum(0).flatten(1) + F.pad(before, (0, size))
        return total[:, :size], total[:, size:]

    def forward(self, codes: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Decode frames; return the samples of all T frames, and the next state.

        Args:
            codes: Codes, [B, K, T].
            first: Index of the first frame in its utterance, [B].
            state: State before it, float64 [B, D].
        """
        decoder = self.codec.decoder
        vectors = self.codec.quantiser.decode(codes)
        hidden, pitch_hidden, last, phase, train, overlap = state.split(decoder.sizes, 1)
        values, hidden = trunk(decoder.trunk, vectors.float(), hidden)
        voice, pitch_hidden = trunk(decoder.pitch_trunk, vectors, pitch_hidden)
        usual = torch.tensor(5.3, dtype=torch.float64)  # exported as float32 if it were a plain number
        pitch = (voice[:, :, 0] + usual).exp().clamp(LOWEST_HZ, HIGHEST_HZ)
        voicing = (voice[:, :, 1] + 0.5).clamp(0, 1)
        curve = torch.cat([last.unflatten(1, (2, 2)), torch.stack([pitch, voicing], 1)], 2)
        pitch_hz = self.upsample(curve[:, 0]).clamp(min=LOWEST_HZ)
        phases = cycles(pitch_hz) + phase
        train = torch.cat([train, pulses(phases[:, :-1], pitch_hz) * self.upsample(curve[:, 1])], 1)
        pulse_real, pulse_imaginary = self.spectrum(train, 4 / FFT_SIZE)
        samples_at = (first * HOPS * HOP)[:, None] + torch.arange(train.shape[1])
        noise_real, noise_imaginary = self.spectrum(
            decoder.noise[samples_at % NOISE_PERIOD], (0.375 * FFT_SIZE) ** -0.5
        )

        voiced, turn, free, angle, noisy = values.split(BINS, dim=-1)
        gain_real, gain_imaginary = polar(voiced, math.pi * torch.tanh(turn))
        level = free.clamp(max=MAX_LOG).exp()
        steady = torch.sigmoid(noisy)
        rough = (1 - steady * steady).clamp(min=1e-6).sqrt()
        real = gain_real * pulse_real - gain_imaginary * pulse_imaginary
        imaginary = gain_real * pulse_imaginary + gain_imaginary * pulse_real
        real = real + level * (steady * angle.cos() + rough * noise_real)
        imaginary = imaginary + level * (steady * angle.sin() + rough * noise_imaginary)
        samples, overlap = self.overlap(real, imaginary, overlap.float())

        ending = phases[:, -1:]
        after = [
            hidden,
            pitch_hidden,
            curve[:, :, -2:].flatten(1),
            ending - ending.floor(),
            train[:, -OVERLAP:],
            overlap,
        ]
        return samples, torch.cat([tensor.double() for tensor in after], 1)
