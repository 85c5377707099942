"""Filters that change from mel frame to mel frame: log gains to minimum-phase responses, and overlap-add."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codec.tiny.mel import FFT_SIZE, HOP

SPAN = 2 * HOP  # samples of the source that one frame filters: a Hann window, so that neighbours add up to 1
LEAD = HOP // 2  # by how many samples a frame's span begins before the frame
BLOCK = 1024  # FFT size of the filtering, at least SPAN + FFT_SIZE - 1: no wrap-around
FRAMES_BACK = (SPAN - LEAD + FFT_SIZE - 2) // HOP  # a frame still sounds in the frame this far after it
SOURCE_FRAMES_BACK = -(-(FFT_SIZE - 1 + LEAD) // HOP)  # frames whose middles bound the oldest source sample still heard
FRAMES_AHEAD = -(-LEAD // HOP)  # and begins to sound in the frame this far before it


def minimum_phase(log_gain: Tensor) -> Tensor:
    """Causal responses [..., FFT_SIZE] whose magnitudes are exp(log_gain) [..., FFT_SIZE // 2 + 1].

    The real cepstrum is folded onto positive time (Oppenheim and Schafer, Discrete-Time Signal Processing, ch. 13).
    """
    cepstrum = torch.fft.irfft(log_gain, n=FFT_SIZE)
    middle = FFT_SIZE // 2
    folded = torch.cat([cepstrum[..., :1], 2 * cepstrum[..., 1:middle], cepstrum[..., middle : middle + 1]], dim=-1)
    spectrum = torch.fft.rfft(folded, n=FFT_SIZE).exp()
    return torch.fft.irfft(spectrum, n=FFT_SIZE)


def spans(source: Tensor) -> Tensor:
    """The windowed span of each frame [..., T, SPAN] of a source [..., T * HOP]; outside it the source is zero."""
    window = torch.hann_window(SPAN, device=source.device, dtype=source.dtype)
    return F.pad(source, (LEAD, LEAD)).unfold(-1, SPAN, HOP) * window


def apply_filters(sources: Tensor, responses: Tensor) -> Tensor:
    """Sum over C sources [B, C, T * HOP], each filtered by its responses [B, C, T, FFT_SIZE]: pcm [B, T * HOP]."""
    spectra = torch.fft.rfft(spans(sources), n=BLOCK) * torch.fft.rfft(responses, n=BLOCK)
    blocks = torch.fft.irfft(spectra.sum(1), n=BLOCK)
    batch, frames, _ = blocks.shape
    length = (frames - 1) * HOP + BLOCK
    added = F.fold(blocks.transpose(1, 2), (1, length), (1, BLOCK), stride=(1, HOP)).reshape(batch, length)
    return added[:, LEAD : LEAD + frames * HOP]
