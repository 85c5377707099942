"""Timing of turns on synthetic conversations: takeovers, latency, pauses of the user, and backchannels."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.turn_taking import Reply, Span, backchannels, figures, main, response_latency, speech_spans, takes_turn

RATE = 24_000


def sound(duration_s: float, *spans: Span) -> np.ndarray:
    """Return noise at -26 dB in `spans`, and noise at -66 dB elsewhere."""
    pcm = np.random.default_rng(0).standard_normal(round(duration_s * RATE)).astype(np.float32) * 0.0005
    for begin, end in spans:
        pcm[round(begin * RATE) : round(end * RATE)] *= 100
    return pcm


def test_speech_spans_are_frame_accurate_and_merge_short_gaps() -> None:
    spans = speech_spans(sound(6, (1, 2), (2.06, 3), (4, 4.5)), RATE)
    assert np.array(spans) == pytest.approx(np.array([(1, 3), (4, 4.5)]), abs=0.021)
    assert speech_spans(sound(2), RATE) == []
    assert speech_spans(np.zeros(0, np.float32), RATE) == []


@pytest.mark.parametrize(
    ("speech", "words", "is_taken"),
    [
        ([], None, False),
        ([(1.0, 1.9)], None, False),
        ([(1.0, 2.0)], None, True),
        ([(1.0, 1.2), (1.9, 2.1)], None, True),  # from the first to the last speech
        ([(1.0, 1.9)], [(1.0, 1.2), (1.2, 1.4), (1.4, 1.6)], False),
        ([(1.0, 1.9)], [(1.0, 1.2), (1.2, 1.4), (1.4, 1.6), (1.6, 1.8)], True),
        ([(1.0, 4.0)], [], False),  # noise without a word
    ],
)
def test_turn_is_taken_by_one_second_or_over_three_words(
    speech: list[Span], words: list[Span] | None, is_taken: bool
) -> None:
    assert takes_turn(speech, words) == is_taken


def test_response_latency_is_measured_from_turn_end() -> None:
    assert response_latency([(3.5, 6.0)], 3.2) == pytest.approx(0.3)
    assert response_latency([(3.0, 6.0)], 3.2) == pytest.approx(-0.2)
    assert response_latency([(3.5, 4.0)], 3.2) is None
    assert response_latency([(3.5, 6.0)], 3.2, [(3.7, 4.0), (5.5, 5.9)]) == pytest.approx(0.5)


def test_short_spans_are_backchannels_and_long_spans_are_speech() -> None:
    assert backchannels([(1, 1.4), (3, 3.9)]) == (False, [(1, 1.4), (3, 3.9)])
    assert backchannels([(1, 1.4), (3, 4.1)]) == (True, [])
    assert backchannels([(1, 1.9)], [(1, 1.2), (1.3, 1.5), (1.6, 1.8)]) == (True, [])
    assert backchannels([(1, 1.9)], [(1, 1.2), (1.3, 1.5), (5, 6)]) == (False, [(1, 1.9)])
    assert backchannels([]) == (False, [])


def test_figures_are_means_over_replies() -> None:
    answers = [Reply([(3.4, 6)], 8, 3), Reply([(3.8, 6)], 8, 3), Reply([(2.9, 6)], 8, 3), Reply([], 8, 3)]
    found = figures(answers)
    assert (found["takeover_rate"], found["interruptions"]) == (0.75, 1)
    assert found["response_latency_s"] == pytest.approx((0.4 + 0.8 - 0.1) / 3)
    listening = figures([Reply([(1, 1.5), (4, 4.5)], 10), Reply([(1, 3)], 10)])
    assert listening["backchannels_per_s"] == pytest.approx(0.1)
    assert (listening["speaking_rate"], listening["response_latency_s"]) == (0.5, None)
    assert figures([])["takeover_rate"] is None


def test_command_reads_both_sides_of_a_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "user.wav", sound(8, (0.5, 3)), RATE)
    soundfile.write(tmp_path / "reply.wav", np.stack([sound(8, (3.6, 6))] * 2, 1), RATE)
    main([str(tmp_path / "user.wav"), str(tmp_path / "reply.wav")])
    found = json.loads(capsys.readouterr().out)
    assert (found["takeover_rate"], found["interruptions"], found["backchannels_per_s"]) == (1.0, 0, 0.0)
    assert found["response_latency_s"] == pytest.approx(0.6, abs=0.05)
