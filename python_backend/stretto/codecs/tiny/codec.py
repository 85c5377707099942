"""`tiny`: bundled codec (24 kHz, 26.7 frames per second, 7 codebooks).

The encoder reads log-mel frames, and a residual quantiser rounds its output. The decoder is causal: from the codes of a
frame, and its state, it computes the pitch and a spectrum for every hop, which shapes pulses and noise.

    codes ─► quantiser ─┬─► pitch trunk ─► pitch, voicing ─► pulses ─┐
                        └─► trunk ─► head ─► spectra of each hop ────┴─► inverse transform ─► samples
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful, Window
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import load_strictly, read_tensors

SAMPLE_RATE = 24_000
HOP = 300
HOPS = 3  # hops per codec frame
FFT_SIZE = 1200  # also the length of the Hann window of all transforms
BINS = FFT_SIZE // 2 + 1
NUM_MELS = 80
FLOOR = 1e-4  # lower bound of mel magnitudes
MEL_LOWEST_HZ = 40.0
MEL_HIGHEST_HZ = 11_800.0


def _mel_of(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _hz_of(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


@cache
def mel_filters() -> Tensor:
    """Return triangular mel filters [NUM_MELS, BINS]; each sums to 1."""
    low = _mel_of(MEL_LOWEST_HZ)
    high = _mel_of(MEL_HIGHEST_HZ)
    edges = [_hz_of(low + (high - low) * i / (NUM_MELS + 1)) for i in range(NUM_MELS + 2)]
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, BINS)
    filters = torch.zeros(NUM_MELS, len(bins_hz))
    for band, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising = (bins_hz - left) / (centre - left)
        falling = (right - bins_hz) / (right - centre)
        filters[band] = torch.minimum(rising, falling).clamp(min=0)
        if filters[band].sum() == 0:  # a band narrower than an FFT bin uses the nearest bin
            filters[band, (bins_hz - centre).abs().argmin()] = 1
    return filters / filters.sum(1, keepdim=True)


def log_mel(pcm: Tensor) -> Tensor:
    """Return the log-mel frames [..., n // HOP, NUM_MELS] of pcm [..., n], each centred on the middle of its hop."""
    margin = (FFT_SIZE - HOP) // 2
    window = torch.hann_window(FFT_SIZE, device=pcm.device)
    framed = F.pad(pcm, (margin, margin))
    spectrum = torch.stft(framed, FFT_SIZE, HOP, FFT_SIZE, window, center=False, return_complex=True).abs()
    return (mel_filters().to(pcm.device) @ spectrum).clamp(min=FLOOR).log().transpose(-1, -2)


HIGHEST_HARMONIC_HZ = 11_000.0
LOWEST_HZ = 50.0
HIGHEST_HZ = 500.0
PHASE_STEP = 2.0**-48  # cycles
NOISE_PERIOD = 1 << 17  # samples: 5 s, too long for an audible repetition


def neighbour_weights() -> Tensor:
    """Return the interpolation weights of the previous, current and next hop at each sample, float64 [3, HOP]."""
    places = (torch.arange(HOP, dtype=torch.float64) + 0.5) / HOP - 0.5
    return torch.stack([(-places).clamp(min=0), 1 - places.abs(), places.clamp(min=0)])


def upsample(values: Tensor, neighbours: Tensor) -> Tensor:
    """Linearly interpolate per-hop values [B, T + 2] to the samples of the hops with two neighbours, [B, T * HOP].

    Per-hop values belong to the hops' centres. The weights are the same in every hop, whereas torch's `interpolate`
    rounds later positions less precisely.

    Args:
        neighbours: `neighbour_weights()` on the device of the values.
    """
    return (values.unfold(1, 3, 1) @ neighbours.to(values.dtype)).flatten(1)


def cycles(pitch_hz: Tensor) -> Tensor:
    """Return the phase in cycles at the borders of samples, [B, T * HOP + 1], for a pitch in Hz, float64 [B, T * HOP].

    Whole cycles are dropped at the starts of hops. Hops are summed in integer multiples of PHASE_STEP, so the result is
    exact in any order (int64 overflow also drops only whole cycles), and phases do not depend on how the utterance is
    split into windows.
    """
    within = F.pad((pitch_hz / SAMPLE_RATE).unflatten(1, (-1, HOP)).cumsum(2), (1, 0))
    steps = (within[:, :, -1] / PHASE_STEP).round().long().cumsum(1)
    starts = F.pad(steps, (1, 0)).remainder(round(1 / PHASE_STEP)).double() * PHASE_STEP
    return torch.cat([(starts[:, :-1, None] + within[:, :, :-1]).flatten(1), starts[:, -1:]], dim=1)


def pulses(phase: Tensor, pitch_hz: Tensor) -> Tensor:
    """Return a band-limited pulse train, [B, n], for a phase in cycles and a pitch in Hz, both float64 [B, n].

    With x = HIGHEST_HARMONIC_HZ / pitch and K = floor(x), the train is the sum of cos(2 pi k phase) for k = 1 … K in
    closed form (Dirichlet kernel), plus harmonic K + 1 with weight x - K, which makes it continuous in the pitch.
    """
    number = HIGHEST_HARMONIC_HZ / pitch_hz
    whole = number.floor()
    half = math.pi * (phase - phase.round())  # small near a peak, so its rounding error is small
    sine = half.sin()
    at_peak = sine.abs() < 1e-7
    ratio = ((2 * whole + 1) * half).sin() / torch.where(at_peak, torch.ones_like(sine), sine)
    kernel = torch.where(at_peak, 2 * whole + 1, ratio) - 1
    return kernel / 2 + (number - whole) * (2 * (whole + 1) * half).cos()


def noise_table() -> Tensor:
    """Return uniform noise of unit power, float32 [NOISE_PERIOD], from an integer hash: identical on every machine."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, NOISE_PERIOD + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    unit = (mixed >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return torch.from_numpy((unit - 0.5) * math.sqrt(12)).float()


# Number of hops by which each part of the decoder is ahead of the complete samples. The samples of a hop need the
# spectra up to two hops later. Spectra need the pulses up to one hop later, and pulses the pitch of the next hop.
SPECTRUM_AHEAD = 2
PITCH_AHEAD = 4
OVERLAP = FFT_SIZE - HOP  # samples that a transform shares with the next one
MAX_LOG = 7.0  # maximum log magnitude of a spectrum


def transform(source: Tensor, window: Tensor) -> Tensor:
    """Return the spectra [..., T, BINS] of a source [..., T * HOP + OVERLAP], each of FFT_SIZE samples."""
    return torch.fft.rfft(source.unfold(-1, FFT_SIZE, HOP) * window)


def spectra(values: Tensor, pulse_spectra: Tensor, noise_spectra: Tensor) -> Tensor:
    """Return the spectra of the audio, complex [B, T, BINS].

    Args:
        values: Output of the head: log magnitude and phase of the voiced part, and log magnitude, phase and share of
            noise of the rest, [B, T, 5 * BINS].
        pulse_spectra: Spectra of the pulses, [B, T, BINS].
        noise_spectra: Spectra of the noise, with unit power, [B, T, BINS].
    """
    voiced, turn, free, phase, noisy = values.unflatten(-1, (5, BINS)).unbind(-2)
    steady = torch.sigmoid(noisy)  # amplitude of the part with a known phase
    voiced_gain = torch.polar(voiced.clamp(max=MAX_LOG).exp(), math.pi * torch.tanh(turn))
    steady_part = torch.polar(steady, phase)
    free_part = steady_part + (1 - steady * steady).clamp(min=1e-6).sqrt() * noise_spectra
    return voiced_gain * pulse_spectra + free.clamp(max=MAX_LOG).exp() * free_part


def depthwise(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """Return the depthwise convolution of hidden [B, T + kernel - 1, C], [B, T, C].

    Its gradient is faster than that of the convolution operator on a GPU in bfloat16.
    """
    assert conv.bias is not None
    return (hidden.unfold(1, conv.kernel_size[0], 1) * conv.weight[:, 0]).sum(-1) + conv.bias


class Block(nn.Module):
    """Residual block: depthwise convolution over hops, then a pointwise network."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)
        self.gain = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, around: Tensor, num_before: int) -> Tensor:
        """Return the output of T hops, [B, T, C].

        Args:
            around: Inputs of these hops and of their neighbours, [B, T + kernel - 1, C].
            num_before: Number of neighbours before the first hop; the others follow the last one.
        """
        mixed = depthwise(self.mix, around)
        hidden = around[:, num_before : num_before + mixed.shape[1]]
        return hidden + self.gain * self.narrow(F.gelu(self.widen(self.norm(mixed))))


class Trunk(nn.Module):
    """Stack of causal blocks that computes HOPS hops from each frame."""

    kernel = 7

    def __init__(self, inputs: int, channels: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.channels = channels
        self.enter = nn.Linear(inputs, HOPS * channels)
        self.blocks = nn.ModuleList(Block(channels, self.kernel) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.leave = nn.Linear(channels, outputs)
        self.state_size = blocks * (self.kernel - 1) * channels

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, T * HOPS, outputs] for frames [B, T, inputs], and the next state [B, state_size]."""
        hidden = self.enter(frames).unflatten(-1, (HOPS, self.channels)).flatten(1, 2)
        before = state.to(hidden.dtype).unflatten(1, (len(self.blocks), self.kernel - 1, self.channels))
        after = []
        for index, block in enumerate(self.blocks):
            whole = torch.cat([before[:, index], hidden], 1)
            hidden = block(whole, self.kernel - 1)
            after.append(whole[:, hidden.shape[1] :])
        return self.leave(self.norm(hidden)), torch.stack(after, 1).flatten(1).to(state.dtype)


@dataclass(frozen=True)
class TinyConfig:
    """Contents of `codec.json`: sizes of the networks."""

    num_codebooks: int = 7
    codebook_size: int = 256
    latent: int = 64
    encoder_channels: int = 192
    encoder_blocks: int = 4
    channels: int = 256
    blocks: int = 6
    pitch_channels: int = 64
    pitch_blocks: int = 4


class Encoder(nn.Module):
    """Network from log-mel frames to one normalised vector per codec frame."""

    margin = 3  # hops on either side that a block reads

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        channels = config.encoder_channels
        self.enter = nn.Linear(NUM_MELS, channels)
        self.blocks = nn.ModuleList(Block(channels, 2 * self.margin + 1) for _ in range(config.encoder_blocks))
        self.leave = nn.Linear(HOPS * channels, config.latent)

    def forward(self, mel: Tensor) -> Tensor:
        """Return vectors [B, T, latent] for log-mel frames [B, T * HOPS, NUM_MELS]."""
        hidden = self.enter((mel + 4) / 3)  # about the mean and the deviation of speech
        for block in self.blocks:
            hidden = block(F.pad(hidden, (0, 0, self.margin, self.margin)), self.margin)
        vectors = self.leave(hidden.unflatten(1, (-1, HOPS)).flatten(2))
        return F.layer_norm(vectors, vectors.shape[-1:])


class ResidualVQ(nn.Module):
    """Residual vector quantiser with codebooks [K, V, D].

    `decode` uses float64, because the pitch derived from its result is integrated over the whole utterance.
    """

    codebooks: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(config.num_codebooks, config.codebook_size, config.latent))

    def encode(self, vectors: Tensor) -> Tensor:
        """Encode vectors [..., D] to codes, int64 [..., K]: the nearest vector of each codebook in turn."""
        residual = vectors
        codes = []
        for codebook in self.codebooks:
            distance = codebook.square().sum(1) - 2 * residual @ codebook.T
            nearest = distance.argmin(-1)
            residual = residual - codebook[nearest]
            codes.append(nearest)
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to vectors, float64 [B, T, D]; the last codebooks may be missing."""
        books = torch.arange(codes.shape[1], device=codes.device)
        return self.codebooks[books[:, None], codes].double().sum(1)


class Decoder(nn.Module):
    """Decoder from quantised vectors to samples. Tables are buffers, because a CUDA graph cannot copy from the host.

    The state of an utterance, float64 [B, state_size], has the states of both trunks, the last two pitches and
    voicings, the phase of the pulses in cycles, the last pulses, and the sum of the transforms that are not complete.
    """

    neighbours: Tensor
    noise: Tensor
    window: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config.latent, config.channels, 5 * BINS, config.blocks)
        self.pitch_trunk = Trunk(config.latent, config.pitch_channels, 2, config.pitch_blocks)
        tables = {
            "neighbours": neighbour_weights(),
            "noise": noise_table(),
            "window": torch.hann_window(FFT_SIZE, dtype=torch.float64),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.sizes = [self.trunk.state_size, self.pitch_trunk.state_size, 4, 1, OVERLAP, OVERLAP]
        self.state_size = sum(self.sizes)

    def pitch(self, vectors: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return log pitch (natural logarithm of Hz) and voicing logit, [B, 2, T * HOPS], and the trunk's state."""
        output, after = self.pitch_trunk(vectors, state)
        log_hz, voicing = output.transpose(1, 2).unbind(1)
        return torch.stack([log_hz + 5.3, voicing], 1), after  # e ** 5.3 Hz is about the voice's mean

    def noise_spectra(self, position: Tensor, hops: int, dtype: torch.dtype) -> Tensor:
        """Return noise spectra of unit power, [B, hops, BINS]; `position` [B] is the first sample of the first one."""
        steps = torch.arange(hops * HOP + OVERLAP, device=position.device)
        noise = self.noise[(position[:, None] + steps) % NOISE_PERIOD].to(dtype)
        return transform(noise, self.window.to(dtype)) / math.sqrt(0.375 * FFT_SIZE)

    def pulse_spectra(self, train: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the spectra [B, T, BINS] of pulses [B, T * HOP + OVERLAP], scaled as the head expects them."""
        return transform(train.to(dtype), self.window.to(dtype) * (4 / FFT_SIZE))

    def overlap(self, spectrum: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples [B, T * HOP] that spectra [B, T, BINS] complete, and the incomplete sum after them.

        `before` is the incomplete sum before the spectra. Both sums are [B, OVERLAP].
        """
        blocks = torch.fft.irfft(spectrum, n=FFT_SIZE) * (self.window.to(before.dtype) / 1.5)
        batch, hops, _ = blocks.shape
        length = hops * HOP + OVERLAP
        total = F.fold(blocks.transpose(1, 2), (1, length), (1, FFT_SIZE), stride=(1, HOP)).reshape(batch, length)
        total = total + F.pad(before, (0, hops * HOP))
        return total[:, : hops * HOP], total[:, hops * HOP :]

    def forward(self, vectors: Tensor, position: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples [B, T * HOPS * HOP] and the next state.

        Args:
            vectors: Quantised vectors, float64 [B, T, latent].
            position: Index in the utterance of the first sample, int64 [B].
            state: State after the frames before, float64 [B, state_size].
        """
        trunk, pitch_trunk, last, phase, train, overlap = state.split(self.sizes, 1)
        dtype = self.trunk.enter.weight.dtype
        values, trunk = self.trunk(vectors.to(dtype), trunk)
        pitch, pitch_trunk = self.pitch(vectors, pitch_trunk)
        voiced = (pitch[:, 1] + 0.5).clamp(0, 1)
        curve = torch.stack([pitch[:, 0].exp().clamp(LOWEST_HZ, HIGHEST_HZ), voiced], 1)
        curve = torch.cat([last.unflatten(1, (2, 2)), curve], 2)
        pitch_hz, voicing = (upsample(values_at_hops, self.neighbours) for values_at_hops in curve.unbind(1))
        pitch_hz = pitch_hz.clamp(min=LOWEST_HZ)  # the state of a new utterance contains no pitch
        phases = cycles(pitch_hz) + phase
        train = torch.cat([train, pulses(phases[:, :-1], pitch_hz) * voicing], 1)
        noise = self.noise_spectra(position, values.shape[1], dtype)
        spectrum = spectra(values, self.pulse_spectra(train, dtype), noise)
        samples, overlap = self.overlap(spectrum, overlap.to(dtype))
        after = [trunk, pitch_trunk, curve[:, :, -2:].flatten(1), phases[:, -1:] % 1.0, train[:, -OVERLAP:], overlap]
        return samples, torch.cat([tensor.double() for tensor in after], 1)


CONFIG_FILE = "codec.json"
WEIGHTS_FILE = "codec.safetensors"
MARGIN = 4 * HOPS * HOP  # samples of silence that the encoder reads at both ends of a recording


class TinyCodec(torch.nn.Module):
    """Bundled codec."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantiser = ResidualVQ(config)
        self.decoder = Decoder(config)
        self.spec = CodecSpec(
            name="tiny",
            sample_rate=SAMPLE_RATE,
            samples_per_frame=HOPS * HOP,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            streaming=Stateful(),
        )

    @property
    def device(self) -> torch.device:
        return self.quantiser.codebooks.device

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n] at 24 kHz, to codes, int64 [K, T]; silence pads the last frame."""
        samples = torch.from_numpy(np.asarray(pcm, dtype=np.float32)).to(self.device)
        if len(samples) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        frame = self.spec.samples_per_frame
        frames = -(-len(samples) // frame)
        mel = log_mel(F.pad(samples, (MARGIN, frames * frame - len(samples) + MARGIN)))
        vectors = self.encoder(mel.to(self.encoder.enter.weight.dtype)[None])[0]
        codes = self.quantiser.encode(vectors[MARGIN // frame :][:frames])
        return codes.T[: self.spec.num_codebooks].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.decoder.state_size, dtype=torch.float64, device=self.device)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode all frames of the window; return samples, float32 [B, n] in [-1, 1], and the next state."""
        vectors = self.quantiser.decode(window.codes.to(self.device))
        position = window.first.to(self.device) * self.spec.samples_per_frame
        pcm, state = self.decoder(vectors, position, window.state)
        return pcm.clamp(-1, 1), state


def load(directory: Path, device: str = "cpu") -> TinyCodec:
    """Load the codec in `directory`; raise CheckpointError if a file is missing or does not fit the codec."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name} is missing")
    try:
        config = TinyConfig(**json_object(directory / CONFIG_FILE))
    except UNPARSABLE as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    codec = TinyCodec(config)
    load_strictly(codec, read_tensors(directory / WEIGHTS_FILE), directory / WEIGHTS_FILE)
    codec.eval().requires_grad_(False)
    codec.decoder.pitch_trunk.double()
    return codec.to(device)
