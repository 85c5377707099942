"""Listening and speaking at once: how long one kind waits while a crowd of the other kind is served, with and without
shares of the KV cache.

    python -m benchmarks.mixed --crowd 32 --guests 3

A crowd of one kind fills the queue; then guests of the other kind come, one after the other. Measured is the time from
a guest's arrival to its first row, and the time until the crowd is done. Two engines take turns over the same random
checkpoint: one without `kv_share`, one with. Times are processor time of this process. One line of JSON for each kind
of crowd.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layout import HIDDEN, LAYERS, engine_args
from benchmarks.published_layouts import BAGPIPER_SMALL, TEXT
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.base import Task
from stretto.records.prompt import Prompt
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from benchmarks.stepped_engine import SteppedEngine  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import sampling_params  # noqa: E402

SPEAK = BAGPIPER_SMALL.task("speak")
LISTEN = Task("listen", (Segment.TEXT,), (TEXT,), ("audio",), SPEAK.sampling)
# The layout for measurements, and a task that listens.
FAMILY = replace(BAGPIPER_SMALL, name="bagpiper-small-mixed", tasks=(SPEAK, LISTEN))
KINDS = {"understanding": LISTEN, "generation": SPEAK}
LONG_ROWS, SHORT_ROWS = 700, 53  # of the prompts: audio to listen to, text to speak
REPLY_ROWS = 150


def make_prompt(kind: str, seed: int) -> Prompt:
    """A prompt of its kind's length, and a reply of `REPLY_ROWS` rows."""
    task, random = KINDS[kind], np.random.default_rng(seed)
    num_rows = LONG_ROWS if kind == "understanding" else SHORT_ROWS
    rows = np.zeros((num_rows, FAMILY.layout.num_input_streams), np.int32)
    rows[:, 0] = random.integers(TEXT.start, TEXT.stop, num_rows)
    sampling = task.sampling
    text = replace(sampling.text, min_rows=REPLY_ROWS, max_rows=REPLY_ROWS)
    audio = replace(sampling.audio, min_rows=REPLY_ROWS, max_rows=REPLY_ROWS)
    scale = 3.0 if kind == "generation" else 1.0
    return Prompt(task.name, rows, replace(sampling, text=text, audio=audio, guidance_scale=scale, seed=seed))


class MixedArm:
    """One engine, with or without shares."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, kv_share: dict[str, float]):
        args = engine_args(FAMILY.max_model_len, arguments.crowd) | {"num_gpu_blocks_override": arguments.blocks}
        self._engine = SteppedEngine(vllm_config(EngineConfig(folder, args, kv_share)))

    def run(self, kind: str, arguments: argparse.Namespace) -> dict[str, float]:
        """A crowd of `kind` and guests of the other kind: seconds that they wait, and that the crowd takes."""
        (other,) = set(KINDS) - {kind}
        crowd = {self._add(make_prompt(kind, seed)) for seed in range(arguments.crowd)}
        arrived, waited = dict[str, float](), dict[str, float]()
        begun = done = time.process_time()
        while self._engine.scheduler.has_requests() or len(arrived) < arguments.guests:
            if len(arrived) * arguments.interval_s <= time.process_time() - begun and len(arrived) < arguments.guests:
                arrived[self._add(make_prompt(other, 1000 + len(arrived)))] = time.process_time()
            for core_outputs in (self._engine.step() or {}).values():
                for output in core_outputs.outputs:
                    now = time.process_time()
                    if output.request_id in arrived:
                        waited.setdefault(output.request_id, now - arrived[output.request_id])
                    elif output.request_id in crowd and output.finish_reason is not None:
                        done = now
        waits = list(waited.values())
        return {"guest_wait_s": statistics.median(waits), "guest_wait_max_s": max(waits), "crowd_s": done - begun}

    def _add(self, prompt: Prompt) -> str:
        rules = self._engine.scheduler.table.rules
        (request_id,) = self._engine.add([prompt.rows[:, 0].tolist()], [sampling_params(prompt, rules)])
        return request_id


def main(arguments: argparse.Namespace) -> None:
    """Measure both kinds of crowd, a line each."""
    shares = {"understanding": arguments.understanding, "generation": arguments.generation}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), FAMILY, "benchmark_mixed", HIDDEN, LAYERS)
        arms = {"without": MixedArm(checkpoint, arguments, {}), "with": MixedArm(checkpoint, arguments, shares)}
        for kind in KINDS:
            rounds = [{name: arm.run(kind, arguments) for name, arm in arms.items()} for _ in range(arguments.rounds)]
            append_result(arguments.out, "mixed", describe(kind, shares, rounds, arguments))


def describe(kind: str, shares: dict[str, float], rounds: list[dict], arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one kind of crowd: medians over the rounds."""
    return {
        "layout": FAMILY.name,
        "crowd_of": kind,
        "crowd": arguments.crowd,
        "guests": arguments.guests,
        "kv_blocks": arguments.blocks,
        "kv_share": shares,
        "rounds": arguments.rounds,
        **{
            f"{name}_{arm}": round(statistics.median(each[arm][name] for each in rounds), 3)
            for name in rounds[0]["with"]
            for arm in ("without", "with")
        },
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "mixed")
    parser.add_argument("--crowd", type=int, default=32, help="requests of one kind, all at once")
    parser.add_argument("--guests", type=int, default=3, help="requests of the other kind")
    parser.add_argument("--interval-s", type=float, default=0.2, help="between the arrivals of two guests")
    parser.add_argument("--blocks", type=int, default=161, help="KV blocks, of 32 rows")
    parser.add_argument("--understanding", type=float, default=0.6, help="share of the cache for those that listen")
    parser.add_argument("--generation", type=float, default=0.6, help="share of the cache for those that speak")
    parser.add_argument("--rounds", type=int, default=3, help="times that the two engines take turns")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
