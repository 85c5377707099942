"""Time-varying filters per mel frame: log gains to minimum-phase responses, and overlap-add."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codec.tiny.mel import FFT_SIZE, HOP

SPAN = 2 * HOP  # source samples filtered by one frame: a Hann window, so that neighbours sum to 1
LEAD = HOP // 2  # samples by which a span precedes its frame
BLOCK = 1024  # FFT size of the filtering, at least SPAN + FFT_SIZE - 1: no wrap-around
FRAMES_BACK = (SPAN - LEAD + FFT_SIZE - 2) // HOP  # frames after which a frame is still audible
SOURCE_FRAMES_BACK = -(-(FFT_SIZE - 1 + LEAD) // HOP)  # distance of the oldest audible source sample, in frames
FRAMES_AHEAD = -(-LEAD // HOP)  # frames before a frame in which it becomes audible


def minimum_phase(log_gain: Tensor) -> Tensor:
    """Return causal responses [..., FFT_SIZE] with magnitudes exp(log_gain) [..., FFT_SIZE // 2 + 1].

    The real cepstrum is folded onto positive time (Oppenheim and Schafer, Discrete-Time Signal Processing, ch. 13).
    """
    cepstrum = torch.fft.irfft(log_gain, n=FFT_SIZE)
    middle = FFT_SIZE // 2
    folded = torch.cat([cepstrum[..., :1], 2 * cepstrum[..., 1:middle], cepstrum[..., middle : middle + 1]], dim=-1)
    spectrum = torch.fft.rfft(folded, n=FFT_SIZE).exp()
    return torch.fft.irfft(spectrum, n=FFT_SIZE)


def spans(source: Tensor) -> Tensor:
    """Return the windowed span of each frame, [..., T, SPAN], of a source [..., T * HOP], zero outside."""
    window = torch.hann_window(SPAN, device=source.device, dtype=source.dtype)
    return F.pad(source, (LEAD, LEAD)).unfold(-1, SPAN, HOP) * window


def apply_filters(sources: Tensor, responses: Tensor) -> Tensor:
    """Return the sum [B, T * HOP] over C sources [B, C, T * HOP], filtered by responses [B, C, T, FFT_SIZE]."""
    spectra = torch.fft.rfft(spans(sources), n=BLOCK) * torch.fft.rfft(responses, n=BLOCK)
    blocks = torch.fft.irfft(spectra.sum(1), n=BLOCK)
    batch, frames, _ = blocks.shape
    length = (frames - 1) * HOP + BLOCK
    added = F.fold(blocks.transpose(1, 2), (1, length), (1, BLOCK), stride=(1, HOP)).reshape(batch, length)
    return added[:, LEAD : LEAD + frames * HOP]
