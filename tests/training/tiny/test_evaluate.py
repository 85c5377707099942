"""Figures that an evaluation measures."""

import json

import pytest

from training.tiny.evaluate import Figure, error_rate, plan


def test_error_rates_are_computed_over_the_whole_set() -> None:
    assert error_rate([["a", "b"], ["c", "d"]], [["a", "x"], ["c", "d"]]) == pytest.approx(25)


def test_only_speech_is_measured_per_guidance_and_seed() -> None:
    figures = list(plan([1.0, 1.5], 3, "open"))
    assert [figure.what for figure in figures].count("speech") == 6
    assert {figure.what for figure in figures} == {"original", "codec", "phonemes", "transcription", "speech"}
    assert len(set(figures)) == 10


def test_evaluation_record_contains_the_measurement() -> None:
    record = json.loads(Figure("speech", "open", 1.5, 2).record(12.345, 60))
    assert record.pop("value") == pytest.approx(12.345, abs=0.01)
    assert record == {**vars(Figure("speech", "open", 1.5, 2)), "ended": 60}
