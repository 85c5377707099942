import argparse
import math

import pytest

from stretto.engine.environment import prepare_environment

pytestmark = pytest.mark.engine


@pytest.mark.nightly
def test_engine_benchmark_ratios_match_its_step_times():
    prepare_environment()
    from benchmarks import engine as benchmark_engine
    from benchmarks.engine import SpeechArm, StockArm, measure

    config = benchmark_engine.EngineConfig.from_file(benchmark_engine.ENGINE_ARGS, benchmark_engine.CHECKPOINT)
    benchmark_engine.cpu_kernels.install()
    arguments = argparse.Namespace(frames=16, guidance=1.5, rounds=1)
    figures = measure(2, arguments, SpeechArm(config), StockArm(config))
    step = figures["ms_per_step"]
    assert set(step) == {"guided", "unguided", "stock_guided", "stock_unguided"}
    assert math.isclose(figures["engine_efficiency"], step["stock_guided"] / step["guided"], rel_tol=1e-2)
    assert math.isclose(figures["cfg_retention"], step["unguided"] / step["guided"], rel_tol=1e-2)
    assert all(value > 0 for value in figures["cpu_ms_per_step"].values())
