"""Measure guided replies in a KV cache that is too small for all of them, and check every frame.

    python -m benchmarks.pairs --pairs 1 4 16 --share 0.75

A Chatterbox T3 model with small random weights runs in this process. Equal numbers of guided and unguided replies with
equal, forced lengths take turns. The KV cache holds `--share` of the blocks that all CFG pairs need at their end, but
at least one pair. `cfg_retention` is the time of the unguided replies divided by the time of the guided replies, from
the first prompt to the last frame. It therefore includes work that is repeated after a preemption. `cfg_retention_cpu`
is the same in processor time. `wrong_frames` counts rows that differ from the unbatched reply to the same prompt.
`unguided_total` counts frames of guided replies that were generated without guidance. The benchmark writes one line of
JSON for each number of pairs.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.random_chatterbox import KNOWN, convert
from benchmarks.engines import SteppedEngine, engine_args, split_trailer
from benchmarks.harness import append_result, command_line, median_ratio
from stretto import cpu_backend as cpu_kernels
from stretto.engine.protocol import Trailer, read_rows
from stretto.families.chatterbox.family import chatterbox
from stretto.families.chatterbox.prompt import open_chatterbox
from stretto.family.prompting import Piece
from stretto.records.prompt import Prompt

BLOCK_SIZE = 32
SCALE = 1.5
Rows = list[list[int]]


@dataclass
class Run:
    """Times and rows of replies that started together."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    rows: list[Rows] = field(default_factory=list)
    trailers: list[Trailer] = field(default_factory=list)


class PairArm:
    """An engine whose KV cache fits only a share of its replies."""

    def __init__(self, checkpoint: Path, number: int, arguments: argparse.Namespace):
        template = open_chatterbox(checkpoint)
        task = chatterbox(KNOWN).tasks[0]
        audio = replace(task.sampling.audio, min_rows=arguments.frames, max_rows=arguments.frames)
        texts = [f"The train to Oslo leaves on track {chr(97 + index)}" for index in range(number)]
        written = [template.write(task, (Piece("user", "text", text=text),), "default") for text in texts]
        self._prompts = [
            Prompt("tts", each.rows, replace(task.sampling, audio=audio, seed=seed))
            for seed, each in enumerate(written)
        ]
        rows = max(len(prompt.rows) for prompt in self._prompts) + arguments.frames + 1
        blocks_of_pair = 2 * -(-rows // BLOCK_SIZE)
        self.num_blocks = max(blocks_of_pair, int(arguments.share * number * blocks_of_pair))
        args = engine_args(
            KNOWN.max_model_len,
            number,
            max_num_batched_tokens=512,
            block_size=BLOCK_SIZE,
            kv_cache_memory_bytes=1 << 28,
            num_gpu_blocks_override=1 + self.num_blocks,  # vLLM reserves one block
        )
        self._engine = SteppedEngine.from_args(checkpoint, args)

    def run(self, scale: float, only: int | None = None) -> Run:
        """Run all replies together, or only the reply with index `only`, starting with an empty prefix cache."""
        assert self._engine.scheduler.reset_prefix_cache()
        chosen = self._prompts if only is None else self._prompts[only : only + 1]
        prompts = [replace(each, sampling=replace(each.sampling, guidance_scale=scale)) for each in chosen]
        wall = time.perf_counter()
        cpu = time.process_time()
        replies: dict[str, list[int]] = {request_id: [] for request_id in self._engine.add_prompts(prompts)}
        while self._engine.scheduler.has_requests():
            for output in self._engine.outputs():
                replies[output.request_id] += output.new_token_ids
        found = Run(time.perf_counter() - wall, time.process_time() - cpu)
        for tokens in replies.values():
            ids, trailer = split_trailer(tokens)
            found.trailers.append(trailer)
            found.rows.append(read_rows(ids, self._engine.scheduler.table.rules.num_row_words)[:, 1:2].tolist())
        return found


def num_wrong(rows: Rows, expected: Rows) -> int:
    """Return how many rows differ, or exist in only one of the replies."""
    differ = sum(mine != theirs for mine, theirs in zip(rows, expected, strict=False))
    return differ + abs(len(rows) - len(expected))


def measure(checkpoint: Path, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both arms alternately and return the ratio between them."""
    arm = PairArm(checkpoint, number, arguments)
    arms = {"guided": SCALE, "unguided": 1.0}
    alone = {name: [arm.run(scale, only).rows[0] for only in range(number)] for name, scale in arms.items()}
    turns = [{name: arm.run(scale) for name, scale in arms.items()} for _ in range(arguments.rounds)]
    runs = {name: [turn[name] for turn in turns] for name in arms}

    def ratio(clock: str) -> float:
        return round(median_ratio(*([getattr(run, clock) for run in runs[name]] for name in ("unguided", "guided"))), 4)

    frames = number * arguments.frames
    return {
        "pairs": number,
        "frames": arguments.frames,
        "share": arguments.share,
        "kv_blocks": arm.num_blocks,
        "rounds": arguments.rounds,
        "cfg_retention": ratio("wall_s"),
        "cfg_retention_cpu": ratio("cpu_s"),
        "frames_per_s": {name: round(statistics.median(frames / run.wall_s for run in runs[name]), 1) for name in arms},
        "unguided_total": sum(
            frames - sum(trailer.num_guided_frames for trailer in run.trailers) for run in runs["guided"]
        ),
        "wrong_frames": sum(
            num_wrong(rows, expected)
            for name in arms
            for run in runs[name]
            for rows, expected in zip(run.rows, alone[name], strict=True)
        ),
        "preemptions": {
            name: sum(trailer.num_preemptions for run in runs[name] for trailer in run.trailers) for name in arms
        },
    }


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "pairs",
        pairs=([1, 4, 16], "numbers of simultaneous replies"),
        frames=(96, "frames per reply"),
        share=(0.75, "KV cache size, as a share of the blocks that all pairs need at their end"),
        rounds=(5, "number of turns for each arm"),
    ).parse_args()
    cpu_kernels.install()
    with tempfile.TemporaryDirectory() as temporary:
        converted = convert(Path(temporary))
        for pairs in given.pairs:
            append_result(given.out, "pairs", measure(converted, pairs, given))
