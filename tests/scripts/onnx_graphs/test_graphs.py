import pytest
import torch

from scripts.onnx_graphs.graphs import LogMel, fourier
from stretto.codecs.tiny.codec import log_mel


@pytest.mark.parametrize(("inputs", "size"), [(8, 8), (5, 16), (320, 1024)])
def test_fourier_matrices_match_the_fft(inputs: int, size: int) -> None:
    signal = torch.randn(3, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cosines, sines = fourier(inputs, size)
    assert (torch.complex(signal @ cosines.T, signal @ sines.T) - torch.fft.rfft(signal, n=size)).abs().max() < 1e-11


@pytest.mark.parametrize("length", [300, 301, 4000])
def test_log_mel_frames_match_the_codec(length: int) -> None:
    pcm = torch.randn(2, length, generator=torch.Generator().manual_seed(0)) / 10
    frames = LogMel()(pcm)
    assert frames.shape == log_mel(pcm).shape
    assert (frames - log_mel(pcm)).abs().max() <= 1e-5


def test_onnx_log_mel_of_silence_matches() -> None:
    assert torch.equal(LogMel()(torch.zeros(1, 800)), log_mel(torch.zeros(1, 800)))
