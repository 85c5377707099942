"""Packed sequences and their batches."""

import numpy as np
import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.corpus import Corpus, pack
from training.tiny.encoded import Spoken, Transcript
from training.tiny.sequences import NO_TARGET, Rows

PHONEMES = tuple(tiny.PHONEMES.index(name) for name in "pau ah1 p pau".split())
TRANSCRIPT = Transcript("up", PHONEMES, (-1, 0, 0, -1))


def spoken(frames: int) -> Rows:
    return builders.tts(Spoken(TRANSCRIPT, "heart", np.minimum(np.arange(frames), 3)))


def speech(*frames: int) -> Corpus:
    codes = torch.arange(sum(frames))[:, None] + 10 * torch.arange(7)
    return Corpus([pack([spoken(count)]) for count in frames], codes.to(torch.uint8), True, "cpu")


def test_codes_are_delayed_and_are_targets_of_the_row_before() -> None:
    batch, rows = speech(6, 8).batch(np.asarray([1])), spoken(8)
    for k, delay in enumerate(tiny.LAYOUT.delays[1:]):
        for row in range(len(rows.stream_0)):
            frame = row - rows.audio - delay
            expected = 6 + frame + 10 * k if 0 <= frame < 8 else None  # six frames of the other sequence come first
            base = tiny.FIRST_CODE + 256 * k
            assert batch.ids[0, row, 1 + k] == (tiny.PAD if expected is None else base + expected)
            assert batch.codes[0, row - 1, k] == (NO_TARGET if expected is None else expected)
    size = len(rows.stream_0)
    assert (batch.ids[0, :size, 0].numpy() == rows.stream_0).all()
    assert (batch.ids[0, :size, 8].numpy() == rows.index).all()
    assert (batch.target[0, :size].numpy() == rows.target).all()
    assert (batch.ids[0, size:] == tiny.PAD).all()
