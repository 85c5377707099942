"""More guided streams than the engine can serve in time: streams with a gap, and the cost of avoiding gaps.

    python -m benchmarks.overload --requests 32 64 96

Streams of equal length begin one after another, on random weights with the layout of a published model. A listener
starts to play when `--buffer-s` seconds of audio have arrived. An underrun is a frame that arrives after its time. Two
arms take turns: under the policy `always` every frame is guided; under `adaptive` unconditional halves are dropped
while steps take longer than frames last. Arrivals, frames and the engine's own clock all use the processor time of this
process, which runs on one thread, so other load on the machine does not affect the figures. One line of JSON for each
number of streams.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import forced_prompt, layout_engine, split_trailer
from benchmarks.harness import append_result, command_line
from benchmarks.layouts import LAYOUTS
from stretto.engine.protocol import read_rows
from stretto_client.schema import GuidancePolicy

ARMS: tuple[GuidancePolicy, ...] = ("always", "adaptive")


@dataclass
class Listener:
    """Arrival times in seconds of the rows of one stream, and the number of its guided frames."""

    arrivals_s: list[float] = field(default_factory=list)
    num_guided: int = 0

    def gap_s(self, num_frames: int, max_delay: int, period_s: float, buffer_s: float) -> float:
        """Return by how many seconds the latest frame was late; negative if every frame was in time."""
        complete = np.array(self.arrivals_s[max_delay : max_delay + num_frames])
        assert len(complete) == num_frames, f"{len(complete)} of {num_frames} frames"
        begin = complete[min(num_frames, round(buffer_s / period_s)) - 1]
        return float((complete - begin - period_s * np.arange(num_frames)).max())


class OverloadArm:
    """Streams over one layout's random checkpoint."""

    def __init__(self, folder: Path, layout: str, max_requests: int):
        self.family, self._engine = layout_engine(folder, layout, max_requests)
        self.guidance = self._engine.scheduler.guidance
        self.guidance.load.clock = time.process_time

    def run(self, number: int, policy: GuidancePolicy, arguments: argparse.Namespace) -> list[Listener]:
        """Return the listeners of `number` streams in the order of their starts."""
        engine, family, width = self._engine, self.family, self.family.layout.num_output_streams
        self.guidance.load.start_over()
        assert engine.scheduler.reset_prefix_cache()
        listeners: defaultdict[str, Listener] = defaultdict(Listener)
        waiting = [
            forced_prompt(family, family.tasks[0], seed, arguments.frames, scale=arguments.guidance, policy=policy)
            for seed in range(number)
        ]
        begun = time.process_time()
        while waiting or engine.scheduler.has_requests():
            elapsed_s = time.process_time() - begun
            while waiting and (number - len(waiting)) * arguments.interval_s <= elapsed_s:
                engine.add_prompts([waiting.pop(0)])
            for output in list(engine.outputs()):
                listener, ids = listeners[output.request_id], output.new_token_ids
                if output.finish_reason is not None:
                    ids, trailer = split_trailer(ids)
                    listener.num_guided = trailer.num_guided_frames
                listener.arrivals_s += [time.process_time()] * len(read_rows(ids, width))
        return list(listeners.values())

    def figures(self, listeners: list[Listener], arguments: argparse.Namespace) -> dict[str, float]:
        """Return the figures of one run of one arm."""
        period_s, frames, max_delay = 1 / self.family.frame_rate, arguments.frames, self.family.layout.max_delay
        gaps = [each.gap_s(frames, max_delay, period_s, arguments.buffer_s) for each in listeners]
        steps = np.diff(np.unique([at for each in listeners for at in each.arrivals_s]))
        return {
            "without_underrun": sum(gap <= 0 for gap in gaps) / len(gaps),
            "gap_s": max(0.0, max(gaps)),
            "guided_share": sum(each.num_guided for each in listeners) / (len(listeners) * frames),
            "ms_per_step": 1e3 * float(np.median(steps)),
        }


def measure(number: int, arguments: argparse.Namespace, arm: OverloadArm) -> dict[str, Any]:
    """Return the medians of both arms, which take turns."""
    rounds: dict[str, list[dict[str, float]]] = {policy: [] for policy in ARMS}
    before = arm.guidance.num_dropped, arm.guidance.num_restored
    for _ in range(arguments.rounds):
        for policy in ARMS:
            rounds[policy].append(arm.figures(arm.run(number, policy, arguments), arguments))
    return {
        "layout": arguments.layout,
        "requests": number,
        "frames": arguments.frames,
        "frame_period_ms": 1e3 / arm.family.frame_rate,
        "guidance_scale": arguments.guidance,
        "interval_s": arguments.interval_s,
        "buffer_s": arguments.buffer_s,
        "rounds": arguments.rounds,
        **{
            f"{name}_{policy}": round(statistics.median(each[name] for each in rounds[policy]), 4)
            for name in rounds["always"][0]
            for policy in ARMS
        },
        "dropped_halves": arm.guidance.num_dropped - before[0],
        "restored_halves": arm.guidance.num_restored - before[1],
    }


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "overload",
        layout=("bagpiper-small", f"one of {sorted(LAYOUTS)}"),
        requests=([32, 64, 96], "streams at once"),
        frames=(250, "frames of each stream"),
        guidance=(3.0, "guidance scale"),
        interval_s=(0.02, "seconds between the starts of two streams"),
        buffer_s=(0.4, "seconds of audio that a listener buffers before it plays"),
        rounds=(3, "turns of each arm"),
    ).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measured = OverloadArm(Path(temporary), given.layout, max(given.requests))
        measured.run(2, "always", argparse.Namespace(**vars(given) | {"frames": 8}))
        for count in given.requests:
            append_result(given.out, "overload", measure(count, given, measured))
