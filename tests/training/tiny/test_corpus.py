"""Packed sequences and their batches."""

import numpy as np
import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.builders import KEPT_FIRST
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


def test_unconditional_sequences_hide_text_and_predict_only_codes() -> None:
    corpus, rows = speech(6), spoken(6)
    plain = corpus.batch(np.zeros(2, dtype=int))
    batch = corpus.batch(np.zeros(2, dtype=int), np.asarray([True, False]))
    for name in ("ids", "target", "codes", "look"):
        assert torch.equal(getattr(batch, name)[1], getattr(plain, name)[1])
    null, audio = batch.ids[0], rows.audio
    assert (null[KEPT_FIRST : audio - 1, 0] == tiny.NULL).all()
    assert null[audio - 1, 0] == tiny.BEGIN_AUDIO
    assert (null[audio : audio + 6, 0] == tiny.NULL).all()
    assert null[audio + 6, 0] == tiny.END_OF_AUDIO
    assert (null[:, 8] == tiny.PAD).all()
    assert torch.equal(null[:, 1:8], plain.ids[0, :, 1:8])
    assert (batch.target[0] == NO_TARGET).all()
    assert torch.equal(batch.codes[0], plain.codes[0])
    assert not batch.look[0].any()
