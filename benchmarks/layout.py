"""Frames per second of processor time with the stream layout of a published model, on random weights.

Part of `benchmarks.engine` (`--layout`). The engine runs in this process on one thread, over a checkpoint that is
written to a temporary folder. Every reply is audio from its first row. A run counts completely: prompts, frames and the
rows that drain the delays. `ms_per_step` is that of the run's steps, divided into their parts.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engines import Watch, forced_prompt, layout_engine, watch


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the median run, by frames per second of processor time, for each number of requests."""
    with tempfile.TemporaryDirectory() as folder:
        family, engine = layout_engine(Path(folder), arguments.layout, max(arguments.requests))
        task, scale = family.tasks[0], arguments.guidance

        def run(parts: Watch, number: int, frames: int) -> dict[str, Any]:
            prompts = [forced_prompt(family, task, seed, frames, scale=scale) for seed in range(number)]
            assert engine.scheduler.reset_prefix_cache()
            engine.add_prompts(prompts)
            parts.restart()
            cpu, wall = time.process_time(), time.perf_counter()
            steps = engine.finish()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
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
                **sorted(runs, key=lambda each: each["frames_per_cpu_s"])[len(runs) // 2],
            }
