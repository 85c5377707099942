"""Audio of the teacher's vectors."""

from pathlib import Path

import numpy as np
import torch

from stretto.codecs.tiny.codec import HOP, Decoder
from tests.codecs.conftest import SMALL
from training.tiny.render import bridge, samples_of, sources, teacher_spectra
from training.tiny.teacher import Head


def test_the_pitch_is_continued_over_unvoiced_hops() -> None:
    pitch = bridge(torch.tensor([[0.0, 10.0, 150.0, 0.0, 0.0, 200.0, 0.0], [0.0] * 7]))
    assert pitch.hz[0].tolist() == [150, 150, 150, 150, 150, 200, 200]
    assert pitch.voiced[0].tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert pitch.voiced[1].sum() == 0
    assert torch.isfinite(pitch.hz).all()


def test_spectra_of_pulses_with_gain_1_give_the_pulses() -> None:
    decoder, hops = Decoder(SMALL), 40
    found = sources(decoder, bridge(torch.full((1, hops), 200.0)), torch.zeros(1, dtype=torch.int64))
    quiet = torch.full((1, hops, 601), -30.0)
    gain = torch.full((1, hops, 601), 5.7038)  # 300, the factor that the scale of the pulses leaves out
    values = torch.stack([gain, torch.zeros_like(gain), quiet, torch.zeros_like(gain)], 2)
    pcm = samples_of(decoder, teacher_spectra(values, found.pulses))[0, 6 * HOP : -6 * HOP]
    peaks = pcm.reshape(-1, 120).argmax(1)
    assert len(peaks.unique()) == 1
    assert abs(pcm.max() / 55 - 1) < 0.05  # 11,000 / 200 harmonics of amplitude 1


def test_head_leaves_out_the_noise(tmp_path: Path) -> None:
    np.savez(tmp_path / "head.npz", weight=np.zeros((10, 4), np.float32), bias=np.arange(10, dtype=np.float32))
    assert Head(tmp_path, "cpu")(torch.zeros(4)).tolist() == [[0, 1], [2, 3], [6, 7], [8, 9]]
