"""`engine_efficiency`: the guided step that `throughput` has measured against stock vLLM's on the plain backbone.

Stock runs as many rows as a guided step has, greedily, with the same arguments; both medians are of steps in which
every row decodes.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stretto.engine.environment import prepare_environment

from benchmarks.gpu.sections import Setup
from benchmarks.gpu.shapes import ARCHITECTURE, engine_args, shape, write_config
from benchmarks.layouts import PROMPT_ROWS, TEXT

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402

from benchmarks.gpu.throughput import time_run  # noqa: E402
from benchmarks.stepped_engine import SteppedEngine  # noqa: E402


def stock_engine(folder: Path, setup: Setup) -> SteppedEngine:
    """Stock vLLM on the backbone that `throughput` ran on."""
    args = engine_args(setup, was_compiled(setup))
    wants_async = args.pop("async_scheduling")
    overrides = {"architectures": [ARCHITECTURE]}
    model = str(write_config(folder, shape(setup)))
    built = EngineArgs(
        model=model, skip_tokenizer_init=True, hf_overrides=overrides, async_scheduling=wants_async, **args
    ).create_engine_config()
    built.scheduler_config.async_scheduling = wants_async and not setup.is_small
    return SteppedEngine(built)


def measured(setup: Setup, part: str) -> list[dict[str, Any]]:
    """The lines that `throughput` has left of one part; LookupError where there are none."""
    path = setup.lines("throughput")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not any(line["part"] == part for line in lines):
        raise LookupError(f"{path}: nothing of {part} to compare with; run the section throughput first")
    return [line for line in lines if line["part"] == part]


def was_compiled(setup: Setup) -> bool:
    """Whether our engine ran with torch.compile: stock vLLM then does too, and only then."""
    return measured(setup, "start")[-1]["is_compiled"]


def guided_steps(setup: Setup) -> dict[int, float]:
    """Milliseconds of a guided step by number of requests."""
    audio = [line for line in measured(setup, "cfg_retention") if line["reply"] == "audio"]
    return {line["requests"]: line["step_ms_guided"] for line in audio}


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """A line for each number of requests that `throughput` has measured."""
    chosen, ours = shape(setup), guided_steps(setup)
    seeds = itertools.count(TEXT.start)
    with tempfile.TemporaryDirectory() as folder:
        engine = stock_engine(Path(folder), setup)
        params = SamplingParams(temperature=0.0, max_tokens=chosen.frames, ignore_eos=True, detokenize=False)
        for number, step_ms in ours.items():
            num_rows, steps = 2 * number, []
            for _ in range(chosen.rounds + 1):
                engine.add([[next(seeds)] * PROMPT_ROWS for _ in range(num_rows)], [params] * num_rows)
                steps.append(time_run(engine, num_rows).step_ms)
            stock_ms = min(steps[1:])
            figures = {"stock_step_ms": round(stock_ms, 4), "guided_step_ms": step_ms}
            yield {"requests": number, "rows": num_rows, "engine_efficiency": round(stock_ms / step_ms, 4), **figures}
