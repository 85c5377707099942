"""The bound of the first audio of simultaneous requests, and the necessary work that it is computed from."""

import numpy as np
import pytest

from benchmarks.loads import Trace
from stretto.engine.environment import prepare_environment

prepare_environment()

from benchmarks.at_once import NecessarySteps, Spent, measure, prompt_writer  # noqa: E402
from benchmarks.harness import CHECKPOINT, ENGINE_ARGS  # noqa: E402
from stretto import cpu_backend as cpu_kernels  # noqa: E402
from stretto.config import EngineConfig  # noqa: E402
from stretto.preprocessing.request import Preprocessor  # noqa: E402

LOUD = np.ones(160, np.float32)


def answer(first_s: float) -> object:
    """Return a function that fills in a trace with two chunks, the first one after `first_s` seconds."""

    async def send(trace: Trace) -> Trace:
        for late_s in (first_s, first_s + 1.0):
            trace.add(trace.sent + late_s, LOUD, 16_000)
        trace.finished = trace.sent + 3.0
        return trace

    return send


async def test_bound_adds_marginal_batch_time_to_single_first_audio() -> None:
    engine = {1: Spent(0.1, 0.08), 4: Spent(0.25, 0.2)}
    decoder = {1: Spent(0.01, 0.01), 4: Spent(0.03, 0.02)}
    record = await measure(4, 2, answer(0.2), lambda: 0.0, engine.__getitem__, decoder.__getitem__)
    assert record["bound"] == pytest.approx(0.2 + 0.15 + 0.02)
    assert record["over_bound"] == pytest.approx(0.2 / 0.37, abs=1e-4)
    assert record["over_alone"] == pytest.approx(1.0)
    assert record["engine_cpu_s"] == {"one": 0.08, "all": 0.2}
    assert record["decoder_wall_s"] == {"one": 0.01, "all": 0.03}
    assert record["first_audio_p95"] == record["alone_p50"] == pytest.approx(0.2)


@pytest.mark.nightly
@pytest.mark.engine
def test_necessary_steps_stop_at_first_chunks() -> None:
    cpu_kernels.install()
    steps = NecessarySteps(EngineConfig.from_file(ENGINE_ARGS, CHECKPOINT))
    engine, write = steps._engine, prompt_writer(None, Preprocessor(CHECKPOINT))
    calls, step = list[int](), engine.step
    engine.step = lambda: calls.append(engine.num_decoding()) or step()  # type: ignore[method-assign]
    spent = steps.run([write("The train to Oslo is late.", seed) for seed in range(2)])
    assert spent.cpu_s > 0
    assert max(calls) == 4, "two pairs decode"
    assert 20 < len(calls) < 60, "phonemes, delays and a first chunk, but no whole reply"
    assert not engine.scheduler.has_requests()
