"""`tiny`: bundled codec (16 kHz, 25 frames per second, 7 codebooks).

A residual quantiser encodes log-mel frames. A source-filter vocoder shapes pulses and noise with minimum-phase filters
derived from these frames.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful, Window
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import load_strictly, read_tensors

SAMPLE_RATE = 16_000
HOP = 160
WINDOW = 400
FFT_SIZE = 512
NUM_MELS = 64
FLOOR = 1e-4  # lower bound of mel magnitudes
MEL_LOWEST_HZ, MEL_HIGHEST_HZ = 40.0, 7800.0


def _mel_of(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _hz_of(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


def mel_filters() -> Tensor:
    """Return triangular mel filters [NUM_MELS, FFT_SIZE // 2 + 1]; each sums to 1."""
    low, high = _mel_of(MEL_LOWEST_HZ), _mel_of(MEL_HIGHEST_HZ)
    edges = [_hz_of(low + (high - low) * i / (NUM_MELS + 1)) for i in range(NUM_MELS + 2)]
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    filters = torch.zeros(NUM_MELS, len(bins_hz))
    for band, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)
        filters[band] = torch.minimum(rising, falling).clamp(min=0)
        if filters[band].sum() == 0:  # a band narrower than an FFT bin uses the nearest bin
            filters[band, (bins_hz - centre).abs().argmin()] = 1
    return filters / filters.sum(1, keepdim=True)


def band_centres() -> Tensor:
    """Return the centre of each mel band as a (fractional) FFT bin, [NUM_MELS]."""
    return mel_filters() @ torch.arange(FFT_SIZE // 2 + 1.0)


def log_mel(pcm: Tensor) -> Tensor:
    """Return the log-mel frames [..., n // HOP, NUM_MELS] of pcm [..., n].

    Frame i is centred on sample i * HOP + HOP / 2.
    """
    margin = (FFT_SIZE - HOP) // 2
    framed = F.pad(pcm, (margin, margin))
    window = torch.hann_window(WINDOW, device=pcm.device)
    spectrum = torch.stft(framed, FFT_SIZE, HOP, WINDOW, window, center=False, return_complex=True).abs()
    return (mel_filters().to(pcm.device) @ spectrum).clamp(min=FLOOR).log().transpose(-1, -2)


HIGHEST_HARMONIC_HZ = 7800.0
LOWEST_HZ, HIGHEST_HZ = 50.0, 500.0
PHASE_STEP = 2.0**-48  # cycles
NOISE_PERIOD = 1 << 17  # samples: 8 s, too long for an audible repetition


def upsample(frames: Tensor, neighbours: Tensor) -> Tensor:
    """Linearly interpolate per-frame values [B, T] to per-sample values [B, T * HOP].

    Per-frame values belong to the frame centres. The weights are the same in every frame, whereas torch's `interpolate`
    rounds later positions less precisely.

    Args:
        frames: Values per frame.
        neighbours: `neighbour_weights()` on the device of the frames.
    """
    padded = F.pad(frames[:, None], (1, 1), mode="replicate")[:, 0]
    return (padded.unfold(1, 3, 1) @ neighbours.to(frames.dtype)).flatten(1)


def neighbour_weights() -> Tensor:
    """Return the interpolation weights of the previous, current and next frame at each sample, float64 [3, HOP]."""
    places = (torch.arange(HOP, dtype=torch.float64) + 0.5) / HOP - 0.5
    return torch.stack([(-places).clamp(min=0), 1 - places.abs(), places.clamp(min=0)])


def cycles(pitch_hz: Tensor) -> Tensor:
    """Return the phase at sample borders, in cycles, [B, T * HOP + 1], for a pitch in Hz, float64 [B, T * HOP].

    Whole cycles are dropped at frame starts. Frames are summed in integer multiples of PHASE_STEP, so the result is
    exact in any order (int64 overflow also drops only whole cycles), and phases do not depend on how the utterance is
    split into windows.
    """
    within = F.pad((pitch_hz / SAMPLE_RATE).unflatten(1, (-1, HOP)).cumsum(2), (1, 0))
    steps = (within[:, :, -1] / PHASE_STEP).round().long().cumsum(1)
    starts = F.pad(steps, (1, 0)).remainder(round(1 / PHASE_STEP)).double() * PHASE_STEP
    return torch.cat([(starts[:, :-1, None] + within[:, :, :-1]).flatten(1), starts[:, -1:]], dim=1)


def pulses(phase: Tensor, pitch_hz: Tensor) -> Tensor:
    """Return a band-limited pulse train of unit power, [B, n].

    With x = HIGHEST_HARMONIC_HZ / pitch and K = floor(x), the train is the sum of cos(2 pi k phase) for k = 1 … K in
    closed form (Dirichlet kernel), plus harmonic K + 1 with weight x - K, which makes it continuous in the pitch.

    Args:
        phase: Phase in cycles, float64 [B, n].
        pitch_hz: Pitch in Hz, float64 [B, n].
    """
    number = HIGHEST_HARMONIC_HZ / pitch_hz
    whole = number.floor()
    half = math.pi * (phase - phase.round())  # small near a peak, so its rounding error is small
    sine = half.sin()
    at_peak = sine.abs() < 1e-7
    ratio = ((2 * whole + 1) * half).sin() / torch.where(at_peak, torch.ones_like(sine), sine)
    kernel = torch.where(at_peak, 2 * whole + 1, ratio) - 1
    kernel = kernel / 2 + (number - whole) * (2 * (whole + 1) * half).cos()
    return kernel * (2 / number).sqrt()


def noise_table() -> Tensor:
    """Return uniform noise of unit power, float32 [NOISE_PERIOD], from an integer hash: identical on every machine."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, NOISE_PERIOD + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    unit = (mixed >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return torch.from_numpy((unit - 0.5) * math.sqrt(12)).float()


SPAN = 2 * HOP  # source samples filtered by one frame: a Hann window, so that neighbours sum to 1
LEAD = HOP // 2  # samples by which a span precedes its frame
BLOCK = 1024  # FFT size of the filtering; at least SPAN + FFT_SIZE - 1, so that nothing wraps around
FRAMES_BACK = (SPAN - LEAD + FFT_SIZE - 2) // HOP  # number of later frames in which a frame is audible
SOURCE_FRAMES_BACK = -(-(FFT_SIZE - 1 + LEAD) // HOP)  # distance of the oldest audible source sample, in frames
FRAMES_AHEAD = -(-LEAD // HOP)  # number of earlier frames in which a frame is audible


def minimum_phase(log_gain: Tensor) -> Tensor:
    """Return causal impulse responses [..., FFT_SIZE] with magnitudes exp(log_gain) [..., FFT_SIZE // 2 + 1].

    The real cepstrum is folded onto positive time (Oppenheim and Schafer, Discrete-Time Signal Processing, ch. 13).
    """
    cepstrum = torch.fft.irfft(log_gain, n=FFT_SIZE)
    middle = FFT_SIZE // 2
    folded = torch.cat([cepstrum[..., :1], 2 * cepstrum[..., 1:middle], cepstrum[..., middle : middle + 1]], dim=-1)
    spectrum = torch.fft.rfft(folded, n=FFT_SIZE).exp()
    return torch.fft.irfft(spectrum, n=FFT_SIZE)


def spans(source: Tensor) -> Tensor:
    """Return the windowed source samples of each frame, [..., T, SPAN]; zeros surround the source [..., T * HOP]."""
    window = torch.hann_window(SPAN, device=source.device, dtype=source.dtype)
    return F.pad(source, (LEAD, LEAD)).unfold(-1, SPAN, HOP) * window


def apply_filters(sources: Tensor, responses: Tensor) -> Tensor:
    """Filter C sources frame by frame, and return their sum.

    Args:
        sources: Source signals, [B, C, T * HOP].
        responses: Impulse responses per frame, [B, C, T, FFT_SIZE].

    Returns:
        Samples, [B, T * HOP].
    """
    spectra = torch.fft.rfft(spans(sources), n=BLOCK) * torch.fft.rfft(responses, n=BLOCK)
    blocks = torch.fft.irfft(spectra.sum(1), n=BLOCK)
    batch, frames, _ = blocks.shape
    length = (frames - 1) * HOP + BLOCK
    added = F.fold(blocks.transpose(1, 2), (1, length), (1, BLOCK), stride=(1, HOP)).reshape(batch, length)
    return added[:, LEAD : LEAD + frames * HOP]


class ConvBlock(nn.Module):
    """Residual block: depthwise convolution with a look-ahead of `lookahead` frames, then a pointwise network."""

    def __init__(self, channels: int, kernel: int, lookahead: int) -> None:
        super().__init__()
        self.padding = (kernel - 1 - lookahead, lookahead)
        self.mix = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)
        self.gain = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output for hidden [B, T, C], in the same shape; frames outside the input count as zeros."""
        mixed = self.mix(F.pad(hidden.transpose(1, 2), self.padding)).transpose(1, 2)
        return hidden + self.gain * self.narrow(F.gelu(self.widen(self.norm(mixed))))


class Trunk(nn.Module):
    """Stack of blocks. The first `lookahead` blocks each look one frame ahead; the others do not look ahead.

    Frame t of the output depends on frames [t - left, t + lookahead] of the input.
    """

    def __init__(self, inputs: int, channels: int, outputs: int, blocks: int, lookahead: int) -> None:
        super().__init__()
        if not 0 <= lookahead <= blocks:
            raise ValueError(f"lookahead must be in [0, {blocks}], got {lookahead}")
        self.enter = nn.Linear(inputs, channels)
        self.blocks = nn.ModuleList(ConvBlock(channels, self.kernel, int(i < lookahead)) for i in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.leave = nn.Linear(channels, outputs)
        self.left = blocks * (self.kernel - 1) - lookahead
        self.lookahead = lookahead

    kernel = 7

    def forward(self, features: Tensor) -> Tensor:
        """Return vocoder parameters [B, T, outputs] for features [B, T, inputs]."""
        hidden = self.enter(features)
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(self.norm(hidden))


LOUDEST = 6.0  # maximum log gain relative to the mel frame
QUIETEST = -12.0
PULSE_GAIN, NOISE_GAIN = -2.0, -2.5  # a magnitude spectrum of windowed white noise is about exp(2.5) times its rms
VOICING_SLOPE = 0.5


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the pitch network and the filter network; look-ahead is counted in mel frames."""

    channels: int = 192
    blocks: int = 5
    pitch_channels: int = 64
    pitch_blocks: int = 4
    lookahead: int = 3
    mel_mean: float = -4.0
    mel_deviation: float = 2.5


def band_interpolation() -> Tensor:
    """Return weights [NUM_MELS, FFT_SIZE // 2 + 1] that linearly interpolate band values at each FFT bin."""
    bins, centres = torch.arange(FFT_SIZE // 2 + 1.0), band_centres()
    above = torch.searchsorted(centres, bins, right=True).clamp(1, NUM_MELS - 1)
    low, high = centres[above - 1], centres[above]
    weight = ((bins - low) / (high - low)).clamp(0, 1)
    table = torch.zeros(NUM_MELS, len(bins))
    columns = torch.arange(len(bins))
    table[above - 1, columns] = 1 - weight
    table[above, columns] += weight
    return table


class Vocoder(nn.Module):
    """Source-filter vocoder. Tables are buffers on the decoding device, because a CUDA graph cannot copy from the host.

    The caller stores the phase between windows. A sample of mel frame t depends on mel frames [t - left, t + right] and
    on the phase at any single sample. More precisely, it depends on the filters of frames [t - FRAMES_BACK, t +
    FRAMES_AHEAD] and on the pitch of frames [t - SOURCE_FRAMES_BACK, t + FRAMES_AHEAD], each with the context of its
    network.
    """

    interpolation: Tensor
    noise: Tensor
    neighbours: Tensor
    offset: Tensor  # offset of the log gains of pulses and noise, [2, 1, 1]

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        bins = FFT_SIZE // 2 + 1
        self.filter_trunk = Trunk(NUM_MELS, config.channels, 2 * bins, config.blocks, config.lookahead)
        self.pitch_trunk = Trunk(NUM_MELS, config.pitch_channels, 2, config.pitch_blocks, config.lookahead)
        tables = {
            "interpolation": band_interpolation(),
            "noise": noise_table(),
            "neighbours": neighbour_weights(),
            "offset": torch.tensor([PULSE_GAIN, NOISE_GAIN])[:, None, None],
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.left = max(FRAMES_BACK + self.filter_trunk.left, SOURCE_FRAMES_BACK + self.pitch_trunk.left)
        self.right = FRAMES_AHEAD + config.lookahead

    def pitch(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return log pitch (natural logarithm of Hz) and voicing logit, [B, T] each, in the pitch network's dtype."""
        log_hz, voicing = self.pitch_trunk(self._normalise(mel)).unbind(-1)
        return log_hz + 5.0, voicing  # e ** 5 Hz is between the two voices

    def log_gains(self, mel: Tensor) -> Tensor:
        """Return the log gains of pulses and noise, [B, 2, T, bins], in the filter network's dtype."""
        residual = self.filter_trunk(self._normalise(mel)).unflatten(-1, (2, -1)).transpose(1, 2)
        envelope = (mel @ self.interpolation)[:, None]
        return (envelope + self.offset + residual).clamp(QUIETEST + NOISE_GAIN, LOUDEST)

    def render(self, gains: Tensor, pitch_hz: Tensor, phase: Tensor, voicing: Tensor, position: Tensor) -> Tensor:
        """Generate pulses and noise, filter them, and return the samples [B, n] in the dtype of the gains.

        Args:
            gains: Log gains, [B, 2, T, bins].
            pitch_hz: Pitch in Hz, float64 [B, n].
            phase: Phase in cycles, float64 [B, n].
            voicing: Voicing in [0, 1], [B, T].
            position: Index of the first sample in the utterance, int64 [B].
        """
        audible = upsample(voicing.to(gains.dtype), self.neighbours)
        voiced = pulses(phase, pitch_hz).to(gains.dtype) * audible
        steps = torch.arange(phase.shape[1], device=phase.device)
        noise = self.noise[(position[:, None] + steps) % NOISE_PERIOD].to(gains.dtype)
        return apply_filters(torch.stack([voiced, noise], 1), minimum_phase(gains))

    def forward(self, mel: Tensor, first: int, last: int, position: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples [B, (last - first) * HOP] of mel frames [first, last), and the phase [B] after them.

        Args:
            mel: Mel frames with all available context, float64 [B, T, NUM_MELS].
            first: Index in `mel` of the first frame to render.
            last: Index after the last frame to render.
            position: Index in the utterance of the first sample of frame `first`, int64 [B].
            phase: Phase at that sample in cycles, float64 [B].
        """
        # Only the networks need the other context frames.
        frames_read = slice(max(0, first - FRAMES_BACK - 1), last + FRAMES_AHEAD)
        start, stop = (first - frames_read.start) * HOP, (last - frames_read.start) * HOP
        log_hz, logit = (each[:, frames_read] for each in self.pitch(mel))
        gains = self.log_gains(mel.to(self.interpolation.dtype))[:, :, frames_read]
        pitch_hz = log_hz.exp().clamp(LOWEST_HZ, HIGHEST_HZ)
        pitch_hz = upsample(pitch_hz, self.neighbours)
        turned = cycles(pitch_hz)
        phases = turned + (phase - turned[:, start])[:, None]
        voicing = (VOICING_SLOPE * logit + 0.5).clamp(0, 1)
        pcm = self.render(gains, pitch_hz, phases[:, :-1], voicing, position - start)
        return pcm[:, start:stop], phases[:, stop]

    def _normalise(self, mel: Tensor) -> Tensor:
        return (mel - self.config.mel_mean) / self.config.mel_deviation


class ResidualVQ(nn.Module):
    """Residual vector quantiser for vectors of width M, each made of several stacked mel frames.

    Its buffers are a mean [M], a basis [M, D] and codebooks [K, V, D]. `decode` uses float64, because the pitch derived
    from its result is integrated over the whole utterance.
    """

    mean: Tensor
    basis: Tensor
    codebooks: Tensor

    def __init__(self, width: int, rank: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, rank))
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, rank))

    def encode(self, stacked: Tensor) -> Tensor:
        """Encode stacked mel frames [T, M] to codes, int64 [T, K]: the nearest vector of each codebook in turn."""
        residual = (stacked - self.mean) @ self.basis
        codes = []
        for codebook in self.codebooks:
            distance = codebook.square().sum(1) - 2 * residual @ codebook.T
            nearest = distance.argmin(1)
            residual = residual - codebook[nearest]
            codes.append(nearest)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to stacked mel frames, float64 [B, T, M]; the last codebooks may be missing."""
        books = torch.arange(codes.shape[1], device=codes.device)
        vectors = self.codebooks[books[:, None], codes].double().sum(1)
        return vectors @ self.basis.double().T + self.mean.double()


CONFIG_FILE, WEIGHTS_FILE = "codec.json", "codec.safetensors"


@dataclass(frozen=True)
class TinyConfig:
    """Contents of `codec.json`."""

    num_codebooks: int
    codebook_size: int
    mel_frames: int  # mel frames per codec frame
    rank: int
    vocoder: VocoderConfig

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "TinyConfig":
        """Return the config with the fields in `record`; raise TypeError if a field is missing or unknown."""
        vocoder = VocoderConfig(**record.get("vocoder", {}))
        return cls(**{name: value for name, value in record.items() if name != "vocoder"}, vocoder=vocoder)


class TinyCodec(torch.nn.Module):
    """Bundled codec. The state is the phase of the pulse train in cycles, float64 [B, 1]."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.quantiser = ResidualVQ(
            config.mel_frames * NUM_MELS, config.rank, config.num_codebooks, config.codebook_size
        )
        self.vocoder = Vocoder(config.vocoder)
        self.spec = CodecSpec(
            name="tiny",
            sample_rate=SAMPLE_RATE,
            samples_per_frame=config.mel_frames * HOP,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            streaming=Stateful(
                left=-(-self.vocoder.left // config.mel_frames), right=-(-self.vocoder.right // config.mel_frames)
            ),
        )

    @property
    def device(self) -> torch.device:
        return self.quantiser.mean.device

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n] at 16 kHz, to codes, int64 [K, T]; silence pads the last frame."""
        samples = torch.from_numpy(np.asarray(pcm, dtype=np.float32)).to(self.device)
        if len(samples) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = F.pad(samples, (0, -len(samples) % self.spec.samples_per_frame))
        stacked = log_mel(samples).reshape(-1, self.config.mel_frames * NUM_MELS)
        return self.quantiser.encode(stacked).T[: self.spec.num_codebooks].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, dtype=torch.float64, device=self.device)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode frames [first, last); return samples, float32 [B, n] in [-1, 1], and the phase after them."""
        mels, frames = self.config.mel_frames, window.codes.shape[2] - window.right
        stacked = self.quantiser.decode(window.codes.to(self.device))
        mel = stacked.unflatten(2, (mels, NUM_MELS)).flatten(1, 2)
        position = window.first.to(self.device) * self.spec.samples_per_frame
        pcm, phase = self.vocoder(mel, window.left * mels, frames * mels, position, window.state[:, 0])
        return pcm.clamp(-1, 1), phase[:, None] % 1.0


def load(directory: Path, device: str = "cpu") -> TinyCodec:
    """Load the codec in `directory`; raise CheckpointError if a file is missing or does not fit the codec."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name} is missing")
    try:
        config = TinyConfig.from_record(json_object(directory / CONFIG_FILE))
    except UNPARSABLE as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    codec = TinyCodec(config)
    load_strictly(codec, read_tensors(directory / WEIGHTS_FILE), directory / WEIGHTS_FILE)
    codec.eval().requires_grad_(False)
    codec.vocoder.pitch_trunk.double()
    return codec.to(device)
