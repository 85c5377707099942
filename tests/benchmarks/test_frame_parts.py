"""The measured parts of a frame add up to the processor time that the engine uses."""

import argparse
import math
from pathlib import Path

import pytest

from lab.releases.small_models import SMALL_MODELS, write_checkpoint
from stretto.engine.environment import prepare_environment

pytestmark = [pytest.mark.engine, pytest.mark.nightly]


def test_cpu_times_of_frame_parts_add_up(tmp_path: Path) -> None:
    prepare_environment()
    from benchmarks.frames import measure_parts

    checkpoint, model = write_checkpoint("qwen3-tts", tmp_path / "checkpoint"), SMALL_MODELS["qwen3-tts-small"]
    arguments = argparse.Namespace(family="qwen3-tts-small", concurrency=[2], frames=8, rounds=1)
    (record,) = measure_parts(checkpoint, model, arguments)
    parts = dict(record["cpu_ms_per_frame"])
    assert parts.pop("codec") > 0
    assert set(parts) == {"talker", "predictor", "rest"}
    assert all(ms > 0 for ms in parts.values())
    assert math.isclose(sum(parts.values()), 1e3 / record["frames_per_engine_cpu_s"], rel_tol=0.25)
