"""Rendering of the teacher's vectors as audio, with the sources that the codec's decoder uses."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.codecs.tiny.codec import (
    BINS,
    HIGHEST_HZ,
    HOP,
    LOWEST_HZ,
    MAX_LOG,
    OVERLAP,
    Decoder,
    cycles,
    pulses,
    upsample,
)
from training.tiny.teacher import Head

UNVOICED_HZ = 40.0  # the teacher's hops below this pitch have no pulses


@dataclass(frozen=True)
class Pitch:
    """Pitch of T hops: Hz, interpolated over unvoiced hops, [B, T], and voicing, 1 or 0, [B, T]."""

    hz: Tensor
    voiced: Tensor


def bridge(pitch_hz: Tensor) -> Pitch:
    """Return the pitch of [B, T] hops. Unvoiced ones get that of the nearest voiced hop before (or after)."""
    hz = pitch_hz.float()
    voiced = hz > UNVOICED_HZ
    place = torch.arange(hz.shape[1], device=hz.device).expand_as(hz)
    before = torch.where(voiced, place, -1).cummax(1).values
    after = torch.where(voiced, place, hz.shape[1]).flip(1).cummin(1).values.flip(1)
    found = torch.where(before >= 0, before, after.clamp(max=hz.shape[1] - 1))
    filled = hz.gather(1, found)
    filled = torch.where(filled > UNVOICED_HZ, filled, torch.full_like(filled, 200.0))
    return Pitch(filled.clamp(LOWEST_HZ, HIGHEST_HZ), voiced.float())


@dataclass(frozen=True)
class Sources:
    """Spectra of pulses and noise, each centred on a hop's first sample, complex [B, T, BINS]."""

    pulses: Tensor
    noise: Tensor


def sources(decoder: Decoder, pitch: Pitch, position: Tensor) -> Sources:
    """Return the sources of T hops, computed with the decoder's tables."""

    def edged(values: Tensor) -> Tensor:
        return torch.cat([values[:, :1], values, values[:, -1:]], 1)

    hz = upsample(edged(pitch.hz).double(), decoder.neighbours)
    voicing = upsample(edged(pitch.voiced), decoder.neighbours)
    train = (pulses(cycles(hz)[:, :-1], hz) * voicing).float()
    margin = 2 * HOP
    train = torch.nn.functional.pad(train, (margin, OVERLAP - margin))
    spectra = decoder.pulse_spectra(train, torch.float32)
    return Sources(spectra, decoder.noise_spectra(position, spectra.shape[1], torch.float32))


def teacher_spectra(values: Tensor, pulse_spectra: Tensor) -> Tensor:
    """Return the spectra of the teacher's speech, complex [B, T, BINS], from the head's values [B, T, 4, BINS]."""
    voiced, turn, free, phase = values.unbind(-2)
    gain = torch.polar(voiced.clamp(max=MAX_LOG).exp(), math.pi * torch.tanh(turn))
    return gain * pulse_spectra + torch.polar(free.clamp(max=MAX_LOG).exp(), phase)


def samples_of(decoder: Decoder, spectrum: Tensor) -> Tensor:
    """Return samples [B, T * HOP] of spectra that are centred on each hop's first sample."""
    done, rest = decoder.overlap(spectrum, spectrum.real.new_zeros(len(spectrum), OVERLAP))
    return torch.cat([done, rest], 1)[:, 2 * HOP :][:, : done.shape[1]]


def speech(head: Head, decoder: Decoder, hidden: Tensor, pitch_hz: Tensor) -> Tensor:
    """Return the teacher's samples [B, T * HOP] of vectors [B, T, 256] and a pitch [B, T] in Hz."""
    found = sources(decoder, bridge(pitch_hz), torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device))
    assert found.pulses.shape[-1] == BINS
    return samples_of(decoder, teacher_spectra(head(hidden), found.pulses))
