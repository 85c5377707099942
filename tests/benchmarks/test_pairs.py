"""The benchmark of guided replies that exceed the KV cache counts frames correctly."""

import argparse
from pathlib import Path

import pytest

from stretto.engine.environment import prepare_environment

pytestmark = pytest.mark.engine


@pytest.mark.nightly
def test_preempted_cfg_pairs_yield_correct_guided_frames(tmp_path: Path) -> None:
    prepare_environment()
    from benchmarks import pairs
    from benchmarks.checkpoints.random_chatterbox import convert

    pairs.cpu_kernels.install()
    arguments = argparse.Namespace(frames=60, share=0.5, rounds=1)
    figures = pairs.measure(convert(tmp_path), 4, arguments)
    assert figures["kv_blocks"] == 16  # of 32 rows: four CFG pairs of up to 128 rows per request
    assert (figures["wrong_frames"], figures["unguided_total"]) == (0, 0)
    assert figures["preemptions"]["guided"] > figures["preemptions"]["unguided"] == 0
    assert figures["cfg_retention"] > 0


def test_differing_and_missing_rows_count_as_wrong() -> None:
    prepare_environment()
    from benchmarks.pairs import num_wrong

    assert num_wrong([[1], [2]], [[1], [2]]) == 0
    assert num_wrong([[1], [3]], [[1], [2], [4]]) == 2
