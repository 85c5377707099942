"""The decoder's spectra and their overlapping transforms equal slow loops over bins and hops."""

import cmath
import math

import torch

from stretto.codecs.tiny.codec import BINS, FFT_SIZE, HOP, OVERLAP, spectra
from tests.codecs.conftest import make_codec


def test_spectra_sum_the_voiced_part_the_known_part_and_noise() -> None:
    torch.manual_seed(0)
    values = 2 * torch.randn(1, 2, 5 * BINS, dtype=torch.float64)
    pulse_spectra, noise_spectra = torch.randn(2, 1, 2, BINS, dtype=torch.complex128)
    found = spectra(values, pulse_spectra, noise_spectra)
    for t in range(2):
        for at in range(0, BINS, 37):
            voiced, turn, free, phase, noisy = (float(values[0, t, part * BINS + at]) for part in range(5))
            steady = 1 / (1 + math.exp(-noisy))
            pulse, noise = complex(pulse_spectra[0, t, at]), complex(noise_spectra[0, t, at])
            rest = cmath.rect(steady, phase) + math.sqrt(1 - steady**2) * noise
            expected = cmath.rect(math.exp(voiced), math.pi * math.tanh(turn)) * pulse + math.exp(free) * rest
            assert abs(complex(found[0, t, at]) - expected) < 1e-9 * (1 + abs(expected))


def test_overlap_adds_one_windowed_transform_after_another() -> None:
    torch.manual_seed(0)
    hops = 7
    spectrum = torch.randn(2, hops, BINS, dtype=torch.complex128)
    before = torch.randn(2, OVERLAP, dtype=torch.float64)
    complete, rest = make_codec().decoder.overlap(spectrum, before)
    window = torch.hann_window(FFT_SIZE, dtype=torch.float64) / 1.5
    for row in range(2):
        total = torch.zeros(hops * HOP + OVERLAP, dtype=torch.float64)
        total[:OVERLAP] += before[row]
        for hop in range(hops):
            total[hop * HOP : hop * HOP + FFT_SIZE] += torch.fft.irfft(spectrum[row, hop], n=FFT_SIZE) * window
        assert (torch.cat([complete[row], rest[row]]) - total).abs().max() < 1e-12
