"""The long-audio benchmark compares the right steps, and a short run completes."""

import pytest

from stretto.engine.environment import prepare_environment

prepare_environment()

from benchmarks import long_audio  # noqa: E402
from benchmarks.long_audio import SPAN, WARM_UP, LongReplies, Mark, check, compare  # noqa: E402


def test_median_step_times_of_first_and_last_spans_are_compared() -> None:
    marks, forward_s, other_s = [], 0.0, 0.0
    for step in range(3 * SPAN):
        forward_s += 0.001 if step < 2 * SPAN - 1 else 0.003
        other_s += 0.002 if step % 100 else 1.0  # now and then something else takes its time
        marks.append(Mark(forward_s, other_s, 500.0 + step / 100))
    control = [Mark(0.004 * step, 0.005 * step, 500.0) for step in range(WARM_UP + SPAN + 9)]
    figures = compare(marks, control)
    assert figures["ms_per_step_first"] == {"forward": 1.0, "all_else": 2.0}
    assert figures["ms_per_step_last"] == {"forward": 3.0, "all_else": 2.0}
    assert figures["ms_per_step_control"] == {"forward": 4.0, "all_else": 5.0}
    assert figures["resident_mb_growth"] == pytest.approx((2 * SPAN - 1 - WARM_UP) / 100, abs=0.1)


@pytest.mark.nightly
@pytest.mark.engine
def test_long_audio_check_guides_all_frames_with_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []

    def read_as_after(self: LongReplies, num_rows: int) -> None:
        inner(self, num_rows)
        read.extend(len(rows) for rows in self._read_behind)

    inner = LongReplies.read_as_after
    monkeypatch.setattr(LongReplies, "read_as_after", read_as_after)
    monkeypatch.setattr(long_audio, "SPAN", 300)
    figures = check(700, 3.0)
    assert figures["guided_frames"] == 700
    assert figures["resident_mb_growth"] < 20
    assert len(read) == 2, "of each layer"
    assert min(read) > 2 * 550 * 64, "two halves of 550 rows, each as wide as the model at least"
