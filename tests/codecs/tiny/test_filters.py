import numpy as np
import torch

from stretto.codecs.tiny import codec as tiny
from stretto.codecs.tiny.codec import FFT_SIZE, HOP


def smooth_gains(*shape: int) -> torch.Tensor:
    """Return log gains with a few ripples over the spectrum."""
    torch.manual_seed(1)
    ripples = torch.randn(*shape, 6) @ torch.cos(torch.outer(torch.arange(6.0), torch.linspace(0, 3.1416, 257)))
    return ripples / 2


def test_minimum_phase_response_has_given_magnitude_and_early_energy() -> None:
    gains = smooth_gains(3)
    response = tiny.minimum_phase(gains)
    assert torch.allclose(torch.fft.rfft(response).abs().log(), gains, atol=1e-4)
    zero_phase = torch.fft.irfft(gains.exp())
    assert (response[:, :64].square().sum(1) / response.square().sum(1)).min() > 0.99
    assert (response[:, 0] / zero_phase[:, 0]).abs().min() > 0.1


def test_flat_filter_returns_the_source() -> None:
    source = torch.randn(2, 1, 6 * HOP)
    responses = tiny.minimum_phase(torch.zeros(2, 1, 6, FFT_SIZE // 2 + 1))
    pcm = tiny.apply_filters(source, responses)
    inner = slice(tiny.LEAD, -tiny.LEAD)  # the first and the last half span have one neighbour only
    assert torch.allclose(pcm[:, inner], source[:, 0, inner], atol=1e-5)


def test_filtering_convolves_each_span_with_its_response() -> None:
    torch.manual_seed(0)
    frames = 5
    source, responses = torch.randn(1, 2, frames * HOP), torch.randn(1, 2, frames, FFT_SIZE)
    expected = np.zeros(frames * HOP + 2 * 2000)
    window = torch.hann_window(tiny.SPAN).numpy()
    for c in range(2):
        padded = np.pad(source[0, c].numpy(), tiny.LEAD)
        for t in range(frames):
            part = padded[t * HOP : t * HOP + tiny.SPAN] * window
            start = 2000 + t * HOP - tiny.LEAD
            response = responses[0, c, t].numpy()
            expected[start : start + len(part) + FFT_SIZE - 1] += np.convolve(part, response)
    pcm = tiny.apply_filters(source, responses)[0].numpy()
    assert np.abs(pcm - expected[2000 : 2000 + frames * HOP]).max() < 1e-3


def test_filter_frame_extent_matches_the_constants() -> None:
    source = torch.ones(1, 1, 12 * HOP)
    responses = torch.zeros(1, 1, 12, FFT_SIZE)
    responses[0, 0, 6] = 1.0
    sounding = tiny.apply_filters(source, responses)[0].unflatten(0, (12, HOP)).abs().amax(1) > 1e-3
    assert torch.nonzero(sounding)[:, 0].tolist() == list(range(6 - tiny.FRAMES_AHEAD, 6 + tiny.FRAMES_BACK + 1))
