"""Recordings that are made of clean speech."""

import torch

from stretto.codecs.tiny.codec import HOP
from stretto.families.tiny.recording import PEAK, PEAK_QUANTILE
from training.tiny.encode import FRAME, LEFT_DB, Recordings, unspoken, worn


def test_recordings_begin_with_silence_and_change_their_speed() -> None:
    pcm = torch.ones(3, 40 * HOP)
    made = Recordings(torch.tensor([5, -3, 0]), torch.tensor([1.0, 1.0, 1.25])).place(pcm, 60 * HOP)
    loud = [torch.nonzero(each)[:, 0] for each in made]
    assert loud[0][0] == 5 * HOP
    assert abs(len(loud[0]) - 40 * HOP) <= 1
    assert loud[1][0] == 0
    assert abs(len(loud[1]) - 37 * HOP) <= 1
    assert abs(len(loud[2]) - 32 * HOP) <= 2


def test_recordings_of_one_level_differ_in_band_and_noise() -> None:
    torch.manual_seed(0)
    time = torch.arange(24_000) / 24_000
    tones = 0.1 * (2 * torch.pi * 1000 * time).sin() + 0.1 * (2 * torch.pi * 7000 * time).sin()
    made = worn(tones.expand(200, -1))
    assert made.abs().max() <= 1
    low, high = (torch.fft.rfft(made).abs()[:, hz] for hz in (1000, 7000))
    assert (high < 0.1 * low).sum() > 20  # above the band
    assert ((high / low - 1).abs() < 0.01).sum() > 20
    peak = made.abs().quantile(PEAK_QUANTILE, 1) / PEAK
    assert peak.min() > 10 ** (LEFT_DB[0] / 20) - 0.01
    assert peak.max() < 10 ** (LEFT_DB[1] / 20) + 0.01


def test_recordings_without_speech_are_of_several_kinds() -> None:
    made = unspoken(5, 60, torch.Generator().manual_seed(0))
    assert made.shape == (60, 5 * FRAME)
    assert made.abs().max() <= 1
    silent = made.abs().amax(1) == 0
    assert 0 < silent.sum() < 30
