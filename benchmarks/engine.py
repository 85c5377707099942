"""Compare the engine's decode steps, in this process, with stock vLLM on the plain backbone at equal row counts.

    python -m benchmarks.engine --requests 1 4 8 16 --frames 64 --guidance 1.5

Four arms take turns: guided and unguided replies from Stretto, and greedy decoding by stock vLLM with the row counts of
each (a guided reply has two rows per step). Only steps in which every row decodes are timed. A figure is the median
over the rounds. `engine_efficiency` is the step time of stock vLLM divided by Stretto's guided step time;
`engine_efficiency_unguided` is the same without guidance. `cfg_retention` is the unguided step time divided by the
guided step time. Both steps yield a frame for each reply, so this is the share of throughput left with guidance. The
`_cpu` figures are the same ratios in processor time, which is less sensitive to other load.
The benchmark writes one line of JSON for each number of requests.

    python -m benchmarks.engine --layout bagpiper-small --requests 16 --frames 64 --guidance 3.0

This form measures only Stretto, with a published model's streams and vocabulary and random weights. Every reply is
audio from its first row. The whole run is timed: prompts, frames, and the last rows of the delay pattern. `ms_per_step`
is the time of the run's steps, by part.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.engines import SteppedEngine, StepTime, Watch, forced_prompt, layout_engine, stock_config, watch
from benchmarks.harness import CHECKPOINT, ENGINE_ARGS, append_result, command_line
from benchmarks.layouts import LAYOUTS
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.records.prompt import Prompt

prepare_environment()

from vllm import SamplingParams  # noqa: E402

from stretto import cpu_backend as cpu_kernels  # noqa: E402
from stretto.engine.host import vllm_config  # noqa: E402
from stretto.preprocessing.request import Preprocessor, RawRequest  # noqa: E402

PROMPT_ROWS = 40
TEXT_ROWS = 8


def forced(prompt: Prompt, frames: int, scale: float) -> Prompt:
    """Return `prompt` with a text segment of `TEXT_ROWS` rows and an audio segment of `frames` frames."""
    sampling = prompt.sampling
    text = replace(sampling.text, min_rows=TEXT_ROWS, max_rows=TEXT_ROWS)
    audio = replace(sampling.audio, min_rows=frames, max_rows=frames)
    return replace(prompt, sampling=replace(sampling, text=text, audio=audio, guidance_scale=scale, seed=1))


class SpeechArm:
    """Arm of replies from Stretto's engine."""

    def __init__(self, engine_args: EngineConfig):
        self.engine = SteppedEngine(vllm_config(engine_args))
        self._preprocessor = Preprocessor(engine_args.checkpoint)

    def _prompts(self, number: int, frames: int, scale: float) -> list[Prompt]:
        texts = [f"The train to Oslo leaves in {index + 10} minutes." for index in range(number)]
        prompts = [self._preprocessor.prepare(RawRequest(text=text, task="tts")) for text in texts]
        return [forced(prompt, frames, scale) for prompt in prompts]

    def time_steps(self, number: int, frames: int, scale: float) -> StepTime:
        """Return the median step time while `number` replies decode audio, guided unless `scale` is 1."""
        return self.engine.time_steps(*self.requests(number, frames, scale), number * (1 if scale == 1.0 else 2))

    def requests(self, number: int, frames: int, scale: float) -> tuple[list[list[int]], list[SamplingParams]]:
        return self.engine.requests(self._prompts(number, frames, scale))


class StockArm:
    """Arm of greedy decoding by stock vLLM, with the backbone's weights and the same engine arguments."""

    def __init__(self, engine_args: EngineConfig):
        self.engine = SteppedEngine(stock_config(engine_args.checkpoint, engine_args.engine_args))

    def time_steps(self, num_rows: int, steps: int) -> StepTime:
        """Return the median time of `steps` steps that each decode `num_rows` rows."""
        return self.engine.time_steps(*self.requests(num_rows, steps), num_rows)

    def requests(self, num_rows: int, steps: int) -> tuple[list[list[int]], list[SamplingParams]]:
        params = SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True, detokenize=False)
        return [[20 + index] * PROMPT_ROWS for index in range(num_rows)], [params] * num_rows


def measure(number: int, arguments: argparse.Namespace, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Run all arms alternately and return the ratios between them."""
    frames = arguments.frames
    arms: dict[str, Callable[[], StepTime]] = {
        "guided": lambda: ours.time_steps(number, frames, arguments.guidance),
        "stock_guided": lambda: stock.time_steps(2 * number, frames),
        "unguided": lambda: ours.time_steps(number, frames, 1.0),
        "stock_unguided": lambda: stock.time_steps(number, frames),
    }
    for arm in arms.values():
        arm()
    rounds = [{name: arm() for name, arm in arms.items()} for _ in range(arguments.rounds)]

    def median(figure: Callable[[dict[str, StepTime]], float]) -> float:
        return round(statistics.median(figure(times) for times in rounds), 4)

    def medians(arm: str, clock: str) -> float:
        return median(lambda times: getattr(times[arm], clock))

    return {
        "requests": number,
        "frames": frames,
        "guidance_scale": arguments.guidance,
        "engine_efficiency": median(lambda times: times["stock_guided"].wall_ms / times["guided"].wall_ms),
        "engine_efficiency_cpu": median(lambda times: times["stock_guided"].cpu_ms / times["guided"].cpu_ms),
        "engine_efficiency_unguided": median(lambda times: times["stock_unguided"].wall_ms / times["unguided"].wall_ms),
        "cfg_retention": median(lambda times: times["unguided"].wall_ms / times["guided"].wall_ms),
        "cfg_retention_cpu": median(lambda times: times["unguided"].cpu_ms / times["guided"].cpu_ms),
        "ms_per_step": {name: medians(name, "wall_ms") for name in arms},
        "cpu_ms_per_step": {name: medians(name, "cpu_ms") for name in arms},
    }


def measure_layout(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the median run, by frames per second of processor time, for each number of requests."""
    with tempfile.TemporaryDirectory() as folder:
        family, engine = layout_engine(Path(folder), arguments.layout, max(arguments.requests))
        task = family.tasks[0]
        scale = arguments.guidance

        def run(parts: Watch, number: int, frames: int) -> dict[str, Any]:
            prompts = [forced_prompt(family, task, seed, frames, scale=scale) for seed in range(number)]
            assert engine.scheduler.reset_prefix_cache()
            engine.add_prompts(prompts)
            parts.restart()
            cpu = time.process_time()
            wall = time.perf_counter()
            steps = engine.finish()
            cpu = time.process_time() - cpu
            wall = time.perf_counter() - wall
            return {
                "frames_per_cpu_s": round(number * frames / cpu, 1),
                "frames_per_s": round(number * frames / wall, 1),
                "steps": steps,
                "ms_per_step": {"all": round(1e3 * cpu / steps, 4), **parts.ms_per(steps)},
            }

        for number in arguments.requests:
            with watch(engine) as parts:
                run(parts, number, 8)
                runs = [run(parts, number, arguments.frames) for _ in range(arguments.rounds)]
            yield {
                "layout": arguments.layout,
                "requests": number,
                "frames": arguments.frames,
                "guidance_scale": scale,
                "sampling": asdict(forced_prompt(family, task, 0, arguments.frames).sampling.audio),
                **sorted(runs, key=lambda figures: figures["frames_per_cpu_s"])[len(runs) // 2],
            }


def main(arguments: argparse.Namespace) -> None:
    out = arguments.out or Path(f"benchmarks/results/{'engine' if arguments.layout is None else 'layout'}.jsonl")
    if arguments.layout is not None:
        for figures in measure_layout(arguments):
            append_result(out, "layout", figures)
        return
    config = EngineConfig.from_file(ENGINE_ARGS, arguments.checkpoint)
    num_slots = max(config.engine_args["max_num_seqs"], 2 * max(arguments.requests))
    config = replace(config, engine_args={**config.engine_args, "max_num_seqs": num_slots})
    cpu_kernels.install()
    ours = SpeechArm(config)
    stock = StockArm(config)
    for number in arguments.requests:
        append_result(out, "engine", measure(number, arguments, ours, stock))


def parse() -> argparse.Namespace:
    parser = command_line(
        __doc__,
        "engine",
        requests=([1, 4, 8, 16], "numbers of replies per step"),
        frames=(64, "frames per reply"),
        guidance=(1.5, "guidance scale of the guided arm"),
        rounds=(5, "number of turns for each arm"),
        checkpoint=(CHECKPOINT, "checkpoint to load"),
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="model whose streams and vocabulary to use, with random weights"
    )
    parser.set_defaults(out=None)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
    gc.unfreeze()  # or Triton's bindings report objects that the plugin froze as leaked
    gc.collect()
