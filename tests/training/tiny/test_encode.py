"""Silences and noise that training examples get before they are encoded."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from stretto.codecs.tiny.codec import SAMPLE_RATE
from training.tiny.encode import LEAD_S, heard, spoken, with_silence
from training.tiny.synthesise import Utterance

BEGIN_S, END_S, TOTAL_S = 0.2, 0.7, 0.9


@pytest.fixture
def utterance() -> Utterance:
    """Return half a second of loud speech between 0.2 s of zeros."""
    pcm = np.zeros(round(TOTAL_S * SAMPLE_RATE), np.int16)
    pcm[round(BEGIN_S * SAMPLE_RATE) : round(END_S * SAMPLE_RATE)] = 9000
    ends_s = (BEGIN_S, 0.5, END_S, TOTAL_S)
    return Utterance("up", "slt", ("pau", "ah", "p", "pau"), ends_s, (-1, 0, 0, -1), torch.from_numpy(pcm))


@pytest.mark.parametrize(("before_s", "after_s"), [(0.04, None), (0.0, 0.0), (0.35, 0.1), (0.1, 0.5)])
def test_silences_get_the_given_lengths_without_changing_speech(
    utterance: Utterance, before_s: float, after_s: float | None
) -> None:
    made = with_silence(utterance, before_s, after_s)
    tail_s = TOTAL_S - END_S if after_s is None else after_s
    loud = np.flatnonzero(made.pcm.numpy())
    assert (loud[0], len(loud)) == (round(before_s * SAMPLE_RATE), round((END_S - BEGIN_S) * SAMPLE_RATE))
    assert len(made.pcm) == round((before_s + END_S - BEGIN_S + tail_s) * SAMPLE_RATE)
    shift_s = before_s - BEGIN_S
    assert made.ends_s == pytest.approx((before_s, 0.5 + shift_s, END_S + shift_s, END_S + shift_s + tail_s))


def test_synthesised_speech_starts_after_the_lead_in(utterance: Utterance) -> None:
    assert np.flatnonzero(spoken(utterance).pcm.numpy())[0] == round(LEAD_S * SAMPLE_RATE)


def test_kept_silence_is_the_part_next_to_the_speech(utterance: Utterance) -> None:
    pcm = utterance.pcm.clone()
    pcm[: round(BEGIN_S * SAMPLE_RATE)] = torch.arange(round(BEGIN_S * SAMPLE_RATE), dtype=torch.int16)
    made = with_silence(replace(utterance, pcm=pcm), 0.04)
    assert made.pcm[0] == round((BEGIN_S - 0.04) * SAMPLE_RATE)


def test_encoded_recordings_have_random_silences_and_half_have_noise(utterance: Utterance) -> None:
    rng = random.Random(0)
    made = [heard(utterance, rng).pcm.numpy().astype(float) for _ in range(200)]
    assert len({len(pcm) for pcm in made}) > 150
    noisy = sum(bool(np.unique(pcm).size > 2) for pcm in made)
    assert 70 < noisy < 130
    again = random.Random(0)
    assert np.array_equal(made[0], heard(utterance, again).pcm.numpy())
