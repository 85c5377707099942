"""Frames per second of processor time with the stream layout of a published model, on random weights.

Part of `benchmarks.engine` (`--layout`): the checkpoint is written on the spot into a temporary folder, the
engine runs in this process on one thread, and every reply is audio from its first row. A run counts whole: prompts,
frames and the rows that drain the delays. `ms_per_step` is that of the run's steps, divided into their parts.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.published_layouts import LAYOUTS, PROMPT_ROWS, TEXT
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.base import Family, Task
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from benchmarks.stepped_engine import SteppedEngine, watch  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import sampling_params  # noqa: E402

HIDDEN, LAYERS = 256, 4


def engine_args(max_model_len: int, max_requests: int) -> dict[str, Any]:
    """vLLM's arguments: room for as many pairs, and for their prompts in one step."""
    return {
        "dtype": "float32",
        "max_model_len": max_model_len,
        "max_num_seqs": 2 * max_requests,
        "max_num_batched_tokens": 4096,
        "block_size": 32,
        "kv_cache_memory_bytes": 1 << 30,
        "enforce_eager": True,
    }


def layout_engine(folder: Path, layout: str, max_requests: int) -> tuple[Family, Task, SteppedEngine]:
    """The family of a layout, its task that begins with audio, and an engine over a random checkpoint of it."""
    name, family = LAYOUTS[layout]
    write_checkpoint(folder, family, name, HIDDEN, LAYERS)
    engine = SteppedEngine(vllm_config(EngineConfig(folder, engine_args(family.max_model_len, max_requests))))
    return family, next(task for task in family.tasks if task.segments[0] is Segment.AUDIO), engine


class LayoutArm:
    """Replies of forced length over one layout's random checkpoint."""

    def __init__(self, folder: Path, layout: str, max_requests: int):
        self.family, self._task, self._engine = layout_engine(folder, layout, max_requests)
        self._rules = self._engine.scheduler.table.rules
        self._watch = watch(self._engine)
        self._num_runs = 0

    def sampling(self, frames: int, scale: float) -> SamplingConfig:
        """The family's own sampling, with `frames` frames and guidance `scale`."""
        default = self._task.sampling
        audio = replace(default.audio, min_rows=frames, max_rows=frames)
        return replace(default, audio=audio, guidance_scale=scale)

    def run(self, number: int, frames: int, scale: float) -> dict[str, Any]:
        """Figures of `number` replies of `frames` frames, started together."""
        self._num_runs += 1
        random = np.random.default_rng(self._num_runs)
        sampling = self.sampling(frames, scale)
        prompts = []
        for index in range(number):
            rows = np.zeros((PROMPT_ROWS, self.family.layout.num_input_streams), np.int32)
            rows[:, 0] = random.integers(TEXT.start, TEXT.stop, PROMPT_ROWS)
            prompts.append(Prompt(self._task.name, rows, replace(sampling, seed=index)))
        params = [sampling_params(prompt, self._rules) for prompt in prompts]
        self._engine.add([prompt.rows[:, 0].tolist() for prompt in prompts], params)
        self._watch.restart()
        steps, cpu, wall = 0, time.process_time(), time.perf_counter()
        while self._engine.scheduler.has_requests():
            self._engine.step()
            steps += 1
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {
            "frames_per_cpu_s": round(number * frames / cpu, 1),
            "frames_per_s": round(number * frames / wall, 1),
            "steps": steps,
            "ms_per_step": {"all": round(1e3 * cpu / steps, 4), **self._watch.ms_per(steps)},
        }


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The median run, by frames per second of processor time, for every number of requests."""
    with tempfile.TemporaryDirectory() as folder:
        arm = LayoutArm(Path(folder), arguments.layout, max(arguments.requests))
        for number in arguments.requests:
            arm.run(number, 8, arguments.guidance)
            runs = [arm.run(number, arguments.frames, arguments.guidance) for _ in range(arguments.rounds)]
            median = sorted(runs, key=lambda run: run["frames_per_cpu_s"])[len(runs) // 2]
            yield {
                "layout": arguments.layout,
                "requests": number,
                "frames": arguments.frames,
                "guidance_scale": arguments.guidance,
                "sampling": asdict(arm.sampling(arguments.frames, arguments.guidance).audio),
                **median,
            }
