"""Verdicts on answers detect each kind of error."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.chaos.load import Answer, Verdict, judge

SOUND = np.linspace(-0.5, 0.5, 900, dtype=np.float32)
REFERENCE = Answer("a cat", [SOUND], is_final=True)


def whole(**changes: object) -> Answer:
    """Return the reference as three events, with the given changes."""
    return replace(Answer("a cat", list(np.split(SOUND, 3)), is_final=True), **changes)  # type: ignore[arg-type]


def off(sample: int, by: float) -> list[np.ndarray]:
    """Return the samples with one of them changed."""
    pcm = SOUND.copy()
    pcm[sample] += by
    return [pcm]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (whole(), Verdict.RIGHT),
        (whole(pcm=off(899, 5e-5)), Verdict.RIGHT),
        (whole(pcm=off(899, 2e-4)), Verdict.WRONG),
        (whole(pcm=[SOUND, SOUND[:1]]), Verdict.WRONG),
        (whole(pcm=[(SOUND * 32_767).astype(np.int16)]), Verdict.WRONG),
        (whole(text="a dog"), Verdict.WRONG),
        (whole(text="a cat "), Verdict.WRONG),
        (whole(text="a"), Verdict.INCOMPLETE),
        (whole(pcm=[SOUND[:-1]]), Verdict.INCOMPLETE),
        (whole(pcm=[]), Verdict.INCOMPLETE),
        (whole(is_final=False), Verdict.INCOMPLETE),
        (whole(pcm=[SOUND[:300]], is_final=False, has_left=True), Verdict.LEFT),
        (whole(pcm=[SOUND[1:300]], is_final=False, has_left=True), Verdict.WRONG),
        (whole(pcm=[SOUND[:300]], is_final=False, error="ServerUnavailable"), Verdict.ERROR),
        (whole(pcm=off(0, 0.1), is_final=False, error="ServerUnavailable"), Verdict.WRONG),
        (whole(pcm=[], text="", is_final=False, error="RequestRefused"), Verdict.WRONG),
        (whole(is_overdue=True), Verdict.HUNG),
        (whole(error="ServerUnavailable", is_overdue=True), Verdict.HUNG),
    ],
)
def test_verdicts_on_answers_to_valid_requests(answer: Answer, verdict: Verdict) -> None:
    assert judge(REFERENCE, answer) is verdict
