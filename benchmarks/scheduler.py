"""What scheduling costs: a step's `schedule` and `update_from_output` with pairs, against stock vLLM with as many rows.

    python -m benchmarks.scheduler --pairs 1 8 32

Guided replies in their audio segment and greedy decoding by stock vLLM take turns, in this process; only steps in which
every row decodes are counted. `scheduler_ratio` is ours over stock's, processor time of the thread as the engine runs:
between the two calls the model empties the caches. `replayed` is of the calls alone, with the latest output of the
model over and over: microseconds, which other processes disturb less, and Python's instructions and the blocks of
memory that it asks for, which they do not disturb (`host_work.py`). One line of JSON for each number of pairs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.bundled import CHECKPOINT, ENGINE_ARGS
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment

prepare_environment()

from benchmarks.engine import SpeechArm, StockArm  # noqa: E402
from benchmarks.replayed_steps import ReplayedSteps, host_work  # noqa: E402
from stretto.engine.kernels import cpu as cpu_kernels  # noqa: E402
from stretto.engine.protocol import STATS_KEY, SharedStats  # noqa: E402

SCALE = 1.5
REPLAYED_FRAMES = 400


class SchedulerWatch:
    """Seconds of the thread that one scheduler's two calls took, for each step that decodes `num_rows` rows."""

    def __init__(self, scheduler: Any, num_rows: int):
        self._scheduler, self._num_rows = scheduler, num_rows
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        self._wrap(scheduler, "schedule", self.schedule_s, lambda output, _: output)
        self._wrap(scheduler, "update_from_output", self.update_s, lambda _, arguments: arguments[0])

    def _wrap(self, owner: Any, method: str, times_s: list[float], output_of: Callable[[Any, Any], Any]) -> None:
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            result = inner(*args, **kwargs)
            took = time.thread_time() - begun
            scheduled = output_of(result, args).num_scheduled_tokens
            if len(scheduled) == sum(scheduled.values()) == self._num_rows:
                times_s.append(took)
            return result

        setattr(owner, method, timed)

    def stop(self) -> None:
        """Take the watch off again."""
        for method in ("schedule", "update_from_output"):
            delattr(self._scheduler, method)

    def take_ms(self) -> dict[str, float]:
        """The median milliseconds of a step since the last time."""
        taken = {"schedule": self.schedule_s, "update": self.update_s}
        figures = {name: 1e3 * statistics.median(times) for name, times in taken.items()}
        for times in taken.values():
            times.clear()
        return figures | {"all": sum(figures.values())}


def measure(pairs: int, arguments: argparse.Namespace, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Both arms in turn; medians over the rounds, and of the ratio within a round."""
    num_rows, frames = 2 * pairs, arguments.frames
    watches = {name: SchedulerWatch(arm.engine.scheduler, num_rows) for name, arm in (("ours", ours), ("stock", stock))}
    rounds = []
    for _ in range(arguments.rounds + 1):
        ours.time_steps(pairs, frames, SCALE)
        stock.time_steps(num_rows, frames)
        rounds.append({name: watch.take_ms() for name, watch in watches.items()})
    del rounds[0]  # which warmed up
    for watch in watches.values():
        watch.stop()
    medians = {
        name: {part: round(statistics.median(each[name][part] for each in rounds), 4) for part in rounds[0][name]}
        for name in watches
    }
    return {
        "pairs": pairs,
        "frames": frames,
        "rounds": arguments.rounds,
        "scheduler_ratio": round(statistics.median(each["ours"]["all"] / each["stock"]["all"] for each in rounds), 4),
        "cpu_ms_per_step": medians,
        "replayed": measure_replayed(pairs, ours, stock),
    }


def measure_replayed(pairs: int, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Host work of a step of each arm and the ratios, the median step's; the arms take turns."""
    with (
        ReplayedSteps(ours.engine, *ours.requests(pairs, REPLAYED_FRAMES, SCALE), 2 * pairs) as of_ours,
        ReplayedSteps(stock.engine, *stock.requests(2 * pairs, REPLAYED_FRAMES), 2 * pairs) as of_stock,
    ):
        return host_work(of_ours, of_stock)


def main(arguments: argparse.Namespace) -> None:
    """Measure every number of pairs, a line each."""
    config = EngineConfig.from_file(ENGINE_ARGS, arguments.checkpoint)
    cpu_kernels.install()
    shared = SharedStats.create(1)  # our scheduler writes its figures down, as it does in service
    observed = replace(config, engine_args={**config.engine_args, "additional_config": {STATS_KEY: str(shared.path)}})
    ours, stock = SpeechArm(observed), StockArm(config)
    shared.close()
    for pairs in arguments.pairs:
        append_result(arguments.out, "scheduler", measure(pairs, arguments, ours, stock))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "scheduler")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 8, 32], help="guided replies in a step")
    parser.add_argument("--frames", type=int, default=64, help="frames of each reply")
    parser.add_argument("--rounds", type=int, default=15, help="times that the arms take turns")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
