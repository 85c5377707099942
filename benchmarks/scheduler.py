"""Cost of scheduling: `schedule` and `update_from_output` of a step with CFG pairs, compared with stock vLLM.

    python -m benchmarks.scheduler --pairs 1 8 32

Guided replies in their audio segment and greedy decoding by stock vLLM with as many rows alternate in this process;
only steps in which every row decodes are counted. `scheduler_ratio` is Stretto's time over stock's, in processor time
of the thread while the engine runs; between the two calls the model empties the processor's caches. `replayed` covers
the two calls alone, with the model's last output repeated: microseconds, which other processes disturb less, and Python
instructions and memory blocks, which they do not disturb (`host_work.py`). One line of JSON for each number of pairs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.engine import SpeechArm, StockArm
from benchmarks.engines import MethodWatch
from benchmarks.harness import CHECKPOINT, ENGINE_ARGS, append_result, command_line, median_ratio
from benchmarks.host_work import ReplayedSteps, host_work, median_parts
from stretto.config import EngineConfig
from stretto.engine.kernels import cpu as cpu_kernels
from stretto.engine.protocol import STATS_KEY, SharedStats

SCALE = 1.5
REPLAYED_FRAMES = 400


class SchedulerWatch(MethodWatch):
    """Seconds that the two calls of one scheduler took, for each step that decodes `num_rows` rows."""

    def __init__(self, scheduler: Any, num_rows: int):
        super().__init__()
        self._num_rows = num_rows
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        self.replace(scheduler, "schedule", lambda inner: self._timed(inner, self.schedule_s))
        self.replace(scheduler, "update_from_output", lambda inner: self._timed(inner, self.update_s))

    def _timed(self, inner: Callable[..., Any], times_s: list[float]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begun = time.thread_time()
            result = inner(*args)
            took = time.thread_time() - begun
            scheduled = (args[0] if times_s is self.update_s else result).num_scheduled_tokens
            if len(scheduled) == sum(scheduled.values()) == self._num_rows:
                times_s.append(took)
            return result

        return timed

    def take_ms(self) -> dict[str, float]:
        """Return the median milliseconds of a step since the last call."""
        taken = {"schedule": self.schedule_s, "update": self.update_s}
        figures = {name: 1e3 * statistics.median(times) for name, times in taken.items()}
        for times in taken.values():
            times.clear()
        return figures | {"all": sum(figures.values())}


def measure(pairs: int, arguments: argparse.Namespace, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Run both arms alternately; return medians over the rounds, and of the ratio within a round."""
    num_rows, frames = 2 * pairs, arguments.frames
    watches = {name: SchedulerWatch(arm.engine.scheduler, num_rows) for name, arm in (("ours", ours), ("stock", stock))}
    rounds = []
    for _ in range(arguments.rounds + 1):
        ours.time_steps(pairs, frames, SCALE)
        stock.time_steps(num_rows, frames)
        rounds.append({name: watch.take_ms() for name, watch in watches.items()})
    del rounds[0]  # it warms up
    for watch in watches.values():
        watch.stop()
    with (
        ReplayedSteps(ours.engine, *ours.requests(pairs, REPLAYED_FRAMES, SCALE), num_rows) as of_ours,
        ReplayedSteps(stock.engine, *stock.requests(num_rows, REPLAYED_FRAMES), num_rows) as of_stock,
    ):
        replayed = host_work(of_ours, of_stock)
    return {
        "pairs": pairs,
        "frames": frames,
        "rounds": arguments.rounds,
        "scheduler_ratio": round(median_ratio(*([each[name]["all"] for each in rounds] for name in watches)), 4),
        "cpu_ms_per_step": {name: median_parts([each[name] for each in rounds], 4) for name in watches},
        "replayed": replayed,
    }


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "scheduler",
        pairs=([1, 8, 32], "guided replies in a step"),
        frames=(64, "frames of each reply"),
        rounds=(15, "turns of each arm"),
        checkpoint=(CHECKPOINT, "checkpoint to load"),
    ).parse_args()
    config = EngineConfig.from_file(ENGINE_ARGS, given.checkpoint)
    cpu_kernels.install()
    shared = SharedStats.create(1)  # our scheduler publishes its statistics, as it does in service
    observed = replace(config, engine_args={**config.engine_args, "additional_config": {STATS_KEY: str(shared.path)}})
    both = SpeechArm(observed), StockArm(config)
    shared.close()
    for number in given.pairs:
        append_result(given.out, "scheduler", measure(number, given, *both))
