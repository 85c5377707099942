"""Spectra of a voice recording, as decoders with recorded voices read them: mel, log-mel and Kaldi's filter bank.

References: https://github.com/xingchensong/S3Tokenizer (Apache-2.0) and https://github.com/modelscope/3D-Speaker
(Apache-2.0).
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

# sample rates of the mel spectrogram and of both networks
MEL_RATE = 24_000
TOKEN_RATE_HZ = 16_000


@cache
def mel_filters(sample_rate: int, fourier: int, num_mels: int, highest_hz: float = 8000.0) -> Tensor:
    """Return Slaney mel filters, float32 [num_mels, fourier // 2 + 1]."""
    size = fourier // 2 + 1
    bands = mel_filter_bank(size, num_mels, 0.0, highest_hz, sample_rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bands.T.astype(np.float32))


def power_spectrum(pcm: Tensor, fourier: int, hop: int) -> Tensor:
    """Return the centred power spectrum, [fourier // 2 + 1, 1 + n // hop], of samples [n] with a Hann window."""
    window = torch.hann_window(fourier, device=pcm.device)
    return torch.stft(pcm, fourier, hop, window=window, return_complex=True).abs().square()


# zeros of a filter on each side; its cutoff, as a share of the lower rate's
SINC_ZEROS = 6
ROLL_OFF = 0.99


@cache
def _sinc_kernel(source: int, target: int) -> tuple[Tensor, int]:
    """Return windowed sinc filters, float64 [target, 1, m], and how many samples each extends to the left."""
    cutoff = ROLL_OFF * min(source, target) / source
    before = math.ceil(SINC_ZEROS / cutoff)
    offsets = torch.arange(-before, before + source, dtype=torch.float64)
    phase = torch.arange(target, dtype=torch.float64) * source / target
    times = ((offsets - phase[:, None]) * cutoff).clamp(-SINC_ZEROS, SINC_ZEROS)
    window = (times * math.pi / (2 * SINC_ZEROS)).cos().square()
    return (cutoff * torch.sinc(times) * window)[:, None], before


def resample_by_sinc(pcm: Tensor, sample_rate: int, target_rate: int) -> Tensor:
    """Resample pcm [B, n] with a Hann-windowed sinc of width 6 and a rolloff of 0.99, as torchaudio does by default.

    Silence is assumed before and after the samples. The result has ceil(n * target_rate / sample_rate) samples.
    """
    shared = math.gcd(sample_rate, target_rate)
    source = sample_rate // shared
    target = target_rate // shared
    if source == target:
        return pcm
    kernel, before = _sinc_kernel(source, target)
    padded = F.pad(pcm[:, None], (before, before + source))
    phases = F.conv1d(padded, kernel.to(pcm), stride=source)
    return phases.transpose(1, 2).flatten(1)[:, : -(-pcm.shape[1] * target // source)]


MEL_FOURIER = 1920
MEL_HOP = 480


def mel_spectrogram(
    pcm: Tensor,
    num_mels: int = 80,
    highest_hz: float = 8000.0,
    *,
    sample_rate: int = MEL_RATE,
    fourier: int = MEL_FOURIER,
    hop: int = MEL_HOP,
) -> Tensor:
    """Return log-mel frames, float32 [n // hop, M], of samples [n], by default at 24 kHz with a hop of 480."""
    margin = (fourier - hop) // 2
    padded = F.pad(pcm[None], (margin, margin), "reflect")[0]
    window = torch.hann_window(fourier, device=pcm.device)
    spectrum = torch.stft(padded, fourier, hop, window=window, center=False, return_complex=True)
    magnitude = (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()
    return (mel_filters(sample_rate, fourier, num_mels, highest_hz).to(pcm.device) @ magnitude).clamp(min=1e-5).log().T


FBANK_FRAME = 400
FBANK_HOP = 160
FBANK_FOURIER = 512
FBANK_LOWEST_HZ = 20.0
PREEMPHASIS = 0.97


@cache
def _fbank_filters(num_bands: int) -> Tensor:
    """Return Kaldi mel filters, float32 [num_bands, FBANK_FOURIER // 2 + 1]: triangles on Kaldi's mel scale."""
    mel = lambda hertz: 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)  # noqa: E731
    edges = np.linspace(mel(FBANK_LOWEST_HZ), mel(TOKEN_RATE_HZ / 2), num_bands + 2)
    bins = mel(np.arange(FBANK_FOURIER // 2 + 1) * TOKEN_RATE_HZ / FBANK_FOURIER)
    step = edges[1] - edges[0]
    rising = (bins - edges[:-2, None]) / step
    falling = (edges[2:, None] - bins) / step
    return torch.from_numpy(np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32))


def fbank(pcm: Tensor, num_bands: int = 80) -> Tensor:
    """Return the Kaldi log filter bank, float32 [T, num_bands], of samples [n] at 16 kHz in [-1, 1], n >= 400.

    A frame of 25 ms starts every 10 ms and is multiplied by a Povey window. No dither is added.
    """
    frames = pcm.unfold(0, FBANK_FRAME, FBANK_HOP)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - PREEMPHASIS * F.pad(frames[:, None], (1, 0), "replicate")[:, 0, :-1]
    window = torch.hann_window(FBANK_FRAME, periodic=False, device=pcm.device).pow(0.85)
    power = torch.fft.rfft(frames * window, FBANK_FOURIER).abs().square()
    filtered = power @ _fbank_filters(num_bands).to(pcm.device).T
    return filtered.clamp(min=torch.finfo(torch.float32).eps).log()


TOKEN_FOURIER = 400
TOKEN_HOP = 160
TOKEN_MELS = 128


def token_mel(pcm: Tensor) -> Tensor:
    """Return the tokenizer's log-mel frames, float32 [128, n // 160], of samples [n] at 16 kHz, as in Whisper."""
    power = power_spectrum(pcm, TOKEN_FOURIER, TOKEN_HOP)[:, :-1]
    mel = (mel_filters(TOKEN_RATE_HZ, TOKEN_FOURIER, TOKEN_MELS).to(pcm.device) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8) + 4) / 4
