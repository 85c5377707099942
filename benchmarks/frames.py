"""Cost of sampling the codes of a frame one after another, with a depth transformer.

    python -m benchmarks.frames --requests 1 4 16 --frames 48

Decode steps of CSM's shape are compared with steps of the same backbone and streams whose heads sample all codes at
once. Both engines run in this process on random weights, an eighth as wide as `sesame/csm-1b`, with as many layers and
codebooks. They take turns; a figure is the median over the rounds. `depth_cost` is the time of a step with the depth
transformer over that of one without it, `depth_cost_cpu` the same in processor time, and `depth_cpu_ms_per_code` the
difference divided by the number of codes. One line of JSON for each number of requests.
"""

import gc
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engines import SteppedEngine, StepTime, engine_args, forced_prompt
from benchmarks.harness import append_result, command_line, median_ratio
from benchmarks.layouts import CSM, NUM_TEXT_IDS, PARALLEL
from stretto.engine.kernels import cpu as cpu_kernels
from stretto.families.base import Family
from stretto.testing.checkpoints import write_checkpoint

HIDDEN, LAYERS, PROMPT_ROWS = 256, 16, 40


class Arm:
    """Replies of one family over a random checkpoint."""

    def __init__(self, folder: Path, family: Family, name: str, max_requests: int):
        self._family = family
        checkpoint = write_checkpoint(folder / family.name, family, name, HIDDEN, LAYERS, backbone="llama")
        self._engine = SteppedEngine.from_args(checkpoint, engine_args(family.max_model_len, max_requests))

    def time_steps(self, number: int, frames: int) -> StepTime:
        """Return the median time of steps in which `number` replies of `frames` frames decode."""
        task, ids = self._family.tasks[0], range(5, NUM_TEXT_IDS)
        prompts = [
            forced_prompt(self._family, task, seed, frames, num_rows=PROMPT_ROWS, ids=ids) for seed in range(number)
        ]
        return self._engine.time_steps(*self._engine.requests(prompts), number)


def measure(number: int, frames: int, num_rounds: int, arms: dict[str, Arm]) -> dict[str, Any]:
    """Run both arms alternately and return the ratios between them."""
    for arm in arms.values():
        arm.time_steps(number, frames)
    turns = [{name: arm.time_steps(number, frames) for name, arm in arms.items()} for _ in range(num_rounds)]
    cpu = {name: [turn[name].cpu_ms for turn in turns] for name in ("depth", "parallel")}
    walls = ([turn[name].wall_ms for turn in turns] for name in ("depth", "parallel"))
    more_ms = statistics.median(a - b for a, b in zip(cpu["depth"], cpu["parallel"], strict=True))
    return {
        "requests": number,
        "frames": frames,
        "depth_cost": round(median_ratio(*walls), 4),
        "depth_cost_cpu": round(median_ratio(cpu["depth"], cpu["parallel"]), 4),
        "depth_cpu_ms_per_code": round(more_ms / (CSM.layout.num_output_streams - 1), 4),
        "cpu_ms_per_step": {name: round(statistics.median(values), 4) for name, values in cpu.items()},
    }


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "frames",
        requests=([1, 4, 16], "replies in a step"),
        frames=(48, "frames of each reply"),
        rounds=(5, "turns of each engine"),
    ).parse_args()
    cpu_kernels.install()
    with tempfile.TemporaryDirectory() as temporary:
        families = {"depth": (CSM, "benchmark_csm"), "parallel": (PARALLEL, "benchmark_parallel")}
        both = {arm: Arm(Path(temporary), *each, max(given.requests)) for arm, each in families.items()}
        for count in given.requests:
            append_result(given.out, "frames", measure(count, given.frames, given.rounds, both))
    gc.unfreeze()  # objects that the plugin froze, or Triton's bindings report them as leaked after the last line
    gc.collect()
