import math

import torch

from stretto.codecs.tiny.codec import FFT_SIZE, FLOOR, HOP, NUM_MELS, SAMPLE_RATE, log_mel, mel_filters


def test_log_mel_frame_matches_a_direct_computation() -> None:
    pcm = torch.randn(8 * HOP, generator=torch.Generator().manual_seed(0))
    frame = 3
    centre = frame * HOP + HOP // 2
    part = pcm[centre - FFT_SIZE // 2 : centre + FFT_SIZE // 2] * torch.hann_window(FFT_SIZE)
    n = torch.arange(FFT_SIZE).double()
    for band in (2, 40, 79):
        magnitude = torch.stack([
            (part * torch.exp(-2j * math.pi * k * n / FFT_SIZE)).sum().abs() for k in range(FFT_SIZE // 2 + 1)
        ])  # fmt: skip
        expected = (mel_filters()[band].double() @ magnitude).log()
        assert abs(log_mel(pcm)[frame, band].item() - expected.item()) < 1e-4


def test_log_mel_of_silence_is_the_floor_over_whole_hops() -> None:
    frames = log_mel(torch.zeros(2, 5 * HOP + 7))
    assert frames.shape == (2, 5, NUM_MELS)
    assert torch.allclose(frames, torch.tensor(math.log(FLOOR)))


def test_tone_peaks_in_its_mel_band() -> None:
    tone = (2 * math.pi * 1000 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE).sin()
    band = log_mel(tone)[40].argmax()
    centre_hz = (mel_filters()[band] @ torch.arange(FFT_SIZE // 2 + 1.0)) * SAMPLE_RATE / FFT_SIZE
    assert abs(centre_hz - 1000) < 60
