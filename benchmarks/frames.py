"""What it costs to draw a frame's codes one after another: decode steps of CSM's shape, with its depth transformer, and
of the same backbone and streams whose heads draw all codes at once.

    python -m benchmarks.frames --requests 1 4 16 --frames 48

Both engines run in this process on random weights, an eighth as wide as `sesame/csm-1b` and with as many layers and
codebooks; they take turns, round after round, and a figure is the median over the rounds. `depth_cost` is the time of a
step with the depth transformer over that of one without it, `depth_cost_cpu` the same of processor time, and
`depth_cpu_ms_per_code` the difference, over the codes that it draws. One line of JSON for each number of requests.
"""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.base import Family
from stretto.families.csm.family import DEPTH, CsmVocabulary, csm
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from benchmarks.layout import engine_args  # noqa: E402
from benchmarks.stepped_engine import SteppedEngine, StepTime  # noqa: E402
from stretto.engine.kernels import cpu as cpu_kernels  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import sampling_params  # noqa: E402

HIDDEN, LAYERS, PROMPT_ROWS, NUM_TEXT_IDS = 256, 16, 40, 2048
SMALL_DEPTH = replace(DEPTH, hidden=128, intermediate=1024, head_dim=16)
CSM = csm(CsmVocabulary(NUM_TEXT_IDS, begin=1, end=2, pad=3, end_of_audio=4, max_model_len=512, depth=SMALL_DEPTH))
PARALLEL = replace(CSM, name="csm_in_parallel", depth=None, end_frame=())


class Arm:
    """Replies of one family over a random checkpoint."""

    def __init__(self, folder: Path, family: Family, name: str, max_requests: int):
        self._family = family
        checkpoint = write_checkpoint(folder / family.name, family, name, HIDDEN, LAYERS, backbone="llama")
        config = EngineConfig(checkpoint, engine_args(family.max_model_len, max_requests))
        self._engine = SteppedEngine(vllm_config(config))

    def time_steps(self, number: int, frames: int) -> StepTime:
        """The median step in which `number` replies of `frames` frames are drawn."""
        layout, task = self._family.layout, self._family.tasks[0]
        rules = self._engine.scheduler.table.rules
        sampling = replace(task.sampling, audio=replace(task.sampling.audio, min_rows=frames, max_rows=frames))
        rows = np.full((PROMPT_ROWS, layout.num_input_streams), layout.pad_id, np.int32)
        rows[:, 0] = np.random.default_rng(0).integers(5, NUM_TEXT_IDS, PROMPT_ROWS)
        prompts = [Prompt(task.name, rows, replace(sampling, seed=index)) for index in range(number)]
        params = [sampling_params(prompt, rules) for prompt in prompts]
        return self._engine.time_steps([rows[:, 0].tolist()] * number, params, number)


def measure(number: int, frames: int, num_rounds: int, arms: dict[str, Arm]) -> dict[str, Any]:
    """Both arms in turn, and the ratio between them."""
    for arm in arms.values():
        arm.time_steps(number, frames)
    rounds = [{name: arm.time_steps(number, frames) for name, arm in arms.items()} for _ in range(num_rounds)]

    def median(figure: Callable[[dict[str, StepTime]], float]) -> float:
        return round(statistics.median(figure(each) for each in rounds), 4)

    num_codes = CSM.layout.num_output_streams - 1
    return {
        "requests": number,
        "frames": frames,
        "depth_cost": median(lambda each: each["depth"].wall_ms / each["parallel"].wall_ms),
        "depth_cost_cpu": median(lambda each: each["depth"].cpu_ms / each["parallel"].cpu_ms),
        "depth_cpu_ms_per_code": median(lambda each: (each["depth"].cpu_ms - each["parallel"].cpu_ms) / num_codes),
        "cpu_ms_per_step": {
            "depth": median(lambda each: each["depth"].cpu_ms),
            "parallel": median(lambda each: each["parallel"].cpu_ms),
        },
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure every number of requests, a line each."""
    cpu_kernels.install()
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            "depth": Arm(Path(folder), CSM, "benchmark_csm", max(arguments.requests)),
            "parallel": Arm(Path(folder), PARALLEL, "benchmark_parallel", max(arguments.requests)),
        }
        for number in arguments.requests:
            figures = measure(number, arguments.frames, arguments.rounds, arms)
            append_result(arguments.out, "frames", figures)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "frames")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16], help="replies in a step")
    parser.add_argument("--frames", type=int, default=48, help="frames of each reply")
    parser.add_argument("--rounds", type=int, default=5, help="times that the arms take turns")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
    gc.unfreeze()  # what the plugin froze, or Triton's bindings report it as leaked behind the last line
    gc.collect()
