"""What scheduling costs: a step's `schedule` and `update_from_output` with pairs, against stock vLLM with as many rows.

    python -m benchmarks.scheduler --pairs 32

Guided replies in their audio segment and greedy decoding by stock vLLM take turns, in this process; only steps in which
every row decodes are timed, in processor time of the thread. `scheduler_ratio` is ours over stock's. One line of JSON.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.bundled import CHECKPOINT, ENGINE_ARGS
from benchmarks.results_file import append_result
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment

prepare_environment()

from benchmarks.engine import SpeechArm, StockArm  # noqa: E402
from stretto.engine.kernels import cpu as cpu_kernels  # noqa: E402
from stretto.engine.request.shared_stats import KEY, SharedStats  # noqa: E402


class SchedulerWatch:
    """Seconds of the thread that one scheduler's two calls took, for each step that decodes `num_rows` rows."""

    def __init__(self, scheduler: Any, num_rows: int):
        self._num_rows, self._since_s = num_rows, 0.0
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

    def take_ms(self) -> dict[str, float]:
        """The median milliseconds of a step since the last time."""
        taken = {"schedule": self.schedule_s, "update": self.update_s}
        figures = {name: 1e3 * statistics.median(times) for name, times in taken.items()}
        for times in taken.values():
            times.clear()
        return figures | {"all": sum(figures.values())}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both arms in turn; medians over the rounds, and of the ratio within a round."""
    config = EngineConfig.from_file(ENGINE_ARGS, arguments.checkpoint)
    cpu_kernels.install()
    shared = SharedStats.create(1)  # our scheduler writes its figures down, as it does in service
    observed = replace(config, engine_args={**config.engine_args, "additional_config": {KEY: str(shared.path)}})
    ours, stock = SpeechArm(observed), StockArm(config)
    shared.close()
    num_rows = 2 * arguments.pairs
    watches = {
        name: SchedulerWatch(arm._engine.scheduler, num_rows) for name, arm in (("ours", ours), ("stock", stock))
    }
    rounds = []
    for _ in range(arguments.rounds + 1):
        ours.time_steps(arguments.pairs, arguments.frames, 1.5)
        stock.time_steps(num_rows, arguments.frames)
        rounds.append({name: watch.take_ms() for name, watch in watches.items()})
    del rounds[0]  # which warmed up
    medians = {
        name: {part: round(statistics.median(each[name][part] for each in rounds), 4) for part in rounds[0][name]}
        for name in watches
    }
    return {
        "pairs": arguments.pairs,
        "frames": arguments.frames,
        "rounds": arguments.rounds,
        "scheduler_ratio": round(statistics.median(each["ours"]["all"] / each["stock"]["all"] for each in rounds), 4),
        "cpu_ms_per_step": medians,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32, help="guided replies in a step")
    parser.add_argument("--frames", type=int, default=64, help="frames of each reply")
    parser.add_argument("--rounds", type=int, default=15, help="times that the arms take turns")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scheduler.jsonl"))
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    """Measure, a line."""
    append_result(arguments.out, "scheduler", measure(arguments))


if __name__ == "__main__":
    main(parse())
