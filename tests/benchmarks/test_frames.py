"""The benchmark of frames with a depth transformer, run on small checkpoints."""

from pathlib import Path

import pytest

from stretto.engine.environment import prepare_environment
from tests.small_vocabularies import BY_STEP, CSM, PARALLEL

pytestmark = [pytest.mark.engine, pytest.mark.nightly]
prepare_environment()

from benchmarks import frames as benchmark_frames  # noqa: E402


def test_frame_benchmark_compares_depth_and_parallel_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HIDDEN": 64, "LAYERS": 2, "NUM_TEXT_IDS": 50, "CSM": CSM}.items():
        monkeypatch.setattr(benchmark_frames, name, value)
    arms = {
        "depth": benchmark_frames.Arm(tmp_path, CSM, "small_csm", 2),
        "parallel": benchmark_frames.Arm(tmp_path, PARALLEL, "small_parallel", 2),
        "by_step": benchmark_frames.Arm(tmp_path, BY_STEP, "small_by_step", 2),
    }
    figures = benchmark_frames.measure(2, 12, 1, arms)
    milliseconds = figures["cpu_ms_per_step"]
    difference = milliseconds["depth"] - milliseconds["parallel"]
    assert figures["depth_cost_cpu"] == pytest.approx(milliseconds["depth"] / milliseconds["parallel"], rel=1e-2)
    assert figures["depth_cpu_ms_per_code"] == pytest.approx(difference / 5, abs=1e-3)
    by_step = milliseconds["by_step"] - milliseconds["parallel"]
    assert figures["by_step_over_shared"] == pytest.approx(by_step / difference, rel=1e-2)
