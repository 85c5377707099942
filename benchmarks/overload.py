"""More guided streams than the engine is fast enough for: how many listeners hear a gap, and what that costs.

    python -m benchmarks.overload --requests 32 64 96

Streams of equal length begin one after the other on a checkpoint of random weights with the layout of a published
model. A listener starts to play once `--buffer-s` of sound is there; an underrun is a frame that comes after its time.
Two arms take turns: under the policy `always` every frame is guided, under `adaptive` halves go while steps take longer
than frames last. Arrivals, frames and the engine's own watch all go by the processor time of this process, which runs
on one thread: what else the machine does has no part in the figures. One line of JSON for each number of streams.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layout import layout_engine
from benchmarks.published_layouts import LAYOUTS, PROMPT_ROWS, TEXT
from benchmarks.results_file import append_result, command_line
from stretto.engine.environment import prepare_environment
from stretto.families.base import Family
from stretto.records.prompt import Prompt
from stretto.records.sampling import GuidancePolicy

prepare_environment()

from stretto.engine.protocol import Trailer, read_rows, sampling_params  # noqa: E402

ARMS: tuple[GuidancePolicy, ...] = ("always", "adaptive")


@dataclass
class Listener:
    """When the rows of one stream came, in seconds, and how many of its frames were guided."""

    arrivals_s: list[float] = field(default_factory=list)
    num_guided: int = 0

    def gap_s(self, num_frames: int, max_delay: int, period_s: float, buffer_s: float) -> float:
        """How late its latest frame was; below 0 where every frame was there in time."""
        complete = np.array(self.arrivals_s[max_delay : max_delay + num_frames])
        assert len(complete) == num_frames, f"{len(complete)} of {num_frames} frames"
        begin = complete[min(num_frames, round(buffer_s / period_s)) - 1]
        return float((complete - begin - period_s * np.arange(num_frames)).max())


class OverloadArm:
    """Streams over one layout's random checkpoint."""

    def __init__(self, folder: Path, layout: str, max_requests: int):
        self.family, self._task, self._engine = layout_engine(folder, layout, max_requests)
        self._engine.scheduler.guidance.load.clock = time.process_time
        self._random = np.random.default_rng(0)

    def _prompt(self, arguments: argparse.Namespace, policy: GuidancePolicy, seed: int) -> Prompt:
        rows = np.zeros((PROMPT_ROWS, self.family.layout.num_input_streams), np.int32)
        rows[:, 0] = self._random.integers(TEXT.start, TEXT.stop, PROMPT_ROWS)
        default = self._task.sampling
        audio = replace(default.audio, min_rows=arguments.frames, max_rows=arguments.frames)
        scale = arguments.guidance
        sampling = replace(default, audio=audio, guidance_scale=scale, policy=policy, seed=seed)
        return Prompt(self._task.name, rows, sampling)

    def run(self, number: int, policy: GuidancePolicy, arguments: argparse.Namespace) -> list[Listener]:
        """What the listeners of `number` streams got, the first stream's first."""
        engine, rules = self._engine, self._engine.scheduler.table.rules
        engine.scheduler.guidance.load.start_over()
        listeners: defaultdict[str, Listener] = defaultdict(Listener)
        waiting = [self._prompt(arguments, policy, seed) for seed in range(number)]
        begun = time.process_time()
        while waiting or engine.scheduler.has_requests():
            elapsed_s = time.process_time() - begun
            while waiting and (number - len(waiting)) * arguments.interval_s <= elapsed_s:
                prompt = waiting.pop(0)
                engine.add([prompt.rows[:, 0].tolist()], [sampling_params(prompt, rules)])
            self._take(engine.step(), listeners)
        return list(listeners.values())

    def _take(self, outputs: Any, listeners: defaultdict[str, Listener]) -> None:
        now, width, size = time.process_time(), self.family.layout.num_output_streams, len(Trailer._fields)
        for core_outputs in (outputs or {}).values():
            for output in core_outputs.outputs:
                listener, ids = listeners[output.request_id], output.new_token_ids
                if output.finish_reason is not None:
                    listener.num_guided = Trailer(*ids[-size:]).num_guided_frames
                    ids = ids[:-size]
                listener.arrivals_s += [now for _ in read_rows(ids, width)]


def figures(listeners: list[Listener], family: Family, arguments: argparse.Namespace) -> dict[str, float]:
    """One run of one arm."""
    period_s, frames = 1 / family.frame_rate, arguments.frames
    gaps = [each.gap_s(frames, family.layout.max_delay, period_s, arguments.buffer_s) for each in listeners]
    steps = np.diff(np.unique([at for each in listeners for at in each.arrivals_s]))
    return {
        "without_underrun": sum(gap <= 0 for gap in gaps) / len(gaps),
        "gap_s": max(0.0, max(gaps)),
        "guided_share": sum(each.num_guided for each in listeners) / (len(listeners) * frames),
        "ms_per_step": 1e3 * float(np.median(steps)),
    }


def measure(number: int, arguments: argparse.Namespace, arm: OverloadArm) -> dict[str, Any]:
    """Both arms in turn; medians over the rounds."""
    rounds: dict[str, list[dict[str, float]]] = {policy: [] for policy in ARMS}
    guidance = arm._engine.scheduler.guidance
    before = guidance.num_dropped, guidance.num_restored
    for _ in range(arguments.rounds):
        for policy in ARMS:
            rounds[policy].append(figures(arm.run(number, policy, arguments), arm.family, arguments))
    medians = {
        f"{name}_{policy}": round(statistics.median(each[name] for each in rounds[policy]), 4)
        for name in rounds["always"][0]
        for policy in ARMS
    }
    return {
        "layout": arguments.layout,
        "requests": number,
        "frames": arguments.frames,
        "frame_period_ms": 1e3 / arm.family.frame_rate,
        "guidance_scale": arguments.guidance,
        "interval_s": arguments.interval_s,
        "buffer_s": arguments.buffer_s,
        "rounds": arguments.rounds,
        **medians,
        "dropped_halves": guidance.num_dropped - before[0],
        "restored_halves": guidance.num_restored - before[1],
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure every number of streams, a line each."""
    with tempfile.TemporaryDirectory() as folder:
        arm = OverloadArm(Path(folder), arguments.layout, max(arguments.requests))
        arm.run(2, "always", argparse.Namespace(**vars(arguments) | {"frames": 8}))
        for number in arguments.requests:
            append_result(arguments.out, "overload", measure(number, arguments, arm))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "overload")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="bagpiper-small")
    parser.add_argument("--requests", type=int, nargs="+", default=[32, 64, 96], help="streams at once")
    parser.add_argument("--frames", type=int, default=250, help="frames of each stream")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--interval-s", type=float, default=0.02, help="between the arrivals of two streams")
    parser.add_argument("--buffer-s", type=float, default=0.4, help="sound that a listener gathers before it plays")
    parser.add_argument("--rounds", type=int, default=3, help="times that the arms take turns")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
