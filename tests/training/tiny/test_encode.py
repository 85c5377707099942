"""Recordings that are made of clean speech."""

import torch

from stretto.codecs.tiny.codec import HOP
from training.tiny.encode import Recordings


def test_recordings_begin_with_silence_and_change_their_speed() -> None:
    pcm = torch.ones(3, 40 * HOP)
    made = Recordings(torch.tensor([5, -3, 0]), torch.tensor([1.0, 1.0, 1.25])).place(pcm, 60 * HOP)
    loud = [torch.nonzero(each)[:, 0] for each in made]
    assert loud[0][0] == 5 * HOP
    assert abs(len(loud[0]) - 40 * HOP) <= 1
    assert loud[1][0] == 0
    assert abs(len(loud[1]) - 37 * HOP) <= 1
    assert abs(len(loud[2]) - 32 * HOP) <= 2
