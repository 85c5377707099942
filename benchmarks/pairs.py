"""Guided replies in a KV cache that does not hold all of them: what guidance keeps of the throughput, and every frame.

    python -m benchmarks.pairs --pairs 1 4 16 --share 0.75

Replies of Chatterbox's T3 with small random weights, a model that is always guided, in this process: as many guided as
unguided ones in turns, of equal, forced lengths, in one cache that holds `--share` of what both halves of all guided
replies take at their end, but one pair at least. `cfg_retention` is the time of the unguided replies over that of the
guided ones, from the first prompt to the last frame, so what is preempted and computed again counts; `_cpu` the same of
processor time. Each reply is held, row by row, to what the same prompt says alone: `wrong_frames`. `unguided_total`:
frames of guided replies that were drawn without. One line of JSON for each number of pairs.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.random_chatterbox import KNOWN, convert
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.chatterbox.family import chatterbox
from stretto.families.chatterbox.prompt import open_chatterbox
from stretto.records.prompt import Prompt

prepare_environment()

from benchmarks.stepped_engine import SteppedEngine  # noqa: E402
from stretto.engine.kernels import cpu as cpu_kernels  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import Trailer, read_rows, sampling_params  # noqa: E402
from stretto.families.conversation import Piece  # noqa: E402

BLOCK_SIZE, SCALE = 32, 1.5
Rows = list[list[int]]


@dataclass
class Run:
    """What came of replies that began at once, in their order."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    rows: list[Rows] = field(default_factory=list)
    trailers: list[Trailer] = field(default_factory=list)


class PairArm:
    """An engine with room for a share of its replies."""

    def __init__(self, checkpoint: Path, number: int, arguments: argparse.Namespace):
        template, task = open_chatterbox(checkpoint), chatterbox(KNOWN).tasks[0]
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
        engine_args = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": KNOWN.max_model_len,
            "max_num_seqs": 2 * number,
            "max_num_batched_tokens": 512,
            "block_size": BLOCK_SIZE,
            "kv_cache_memory_bytes": 1 << 28,
            "num_gpu_blocks_override": 1 + self.num_blocks,  # vLLM keeps one for itself
        }
        self._engine = SteppedEngine(vllm_config(EngineConfig(checkpoint, engine_args)))

    def run(self, scale: float, only: int | None = None) -> Run:
        """All replies at once, or the one of a prompt alone; nothing is left in the prefix cache from before."""
        assert self._engine.scheduler.reset_prefix_cache()
        chosen = self._prompts if only is None else self._prompts[only : only + 1]
        prompts = [replace(each, sampling=replace(each.sampling, guidance_scale=scale)) for each in chosen]
        rules, found = self._engine.scheduler.table.rules, Run()
        wall, cpu = time.perf_counter(), time.process_time()
        params = [sampling_params(prompt, rules) for prompt in prompts]
        ids = self._engine.add([prompt.rows[:, 0].tolist() for prompt in prompts], params)
        said: dict[str, list[int]] = {request_id: [] for request_id in ids}
        while self._engine.scheduler.has_requests():
            for outputs in (self._engine.step() or {}).values():
                for output in outputs.outputs:
                    said[output.request_id] += output.new_token_ids
        found.wall_s, found.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        num_more = len(Trailer._fields)
        for tokens in said.values():
            found.trailers.append(Trailer(*tokens[-num_more:]))
            found.rows.append(read_rows(tokens[:-num_more], 1)[:, 1:].tolist())
        return found


def num_wrong(rows: Rows, expected: Rows) -> int:
    """Rows that differ, or that one has and the other has not."""
    differ = sum(mine != theirs for mine, theirs in zip(rows, expected, strict=False))
    return differ + abs(len(rows) - len(expected))


def measure(checkpoint: Path, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both arms in turns, and the ratio between them."""
    arm = PairArm(checkpoint, number, arguments)
    arms = {"guided": SCALE, "unguided": 1.0}
    alone = {name: [arm.run(scale, only).rows[0] for only in range(number)] for name, scale in arms.items()}
    rounds = [{name: arm.run(scale) for name, scale in arms.items()} for _ in range(arguments.rounds)]

    def ratio(clock: str) -> float:
        kept = [getattr(each["unguided"], clock) / getattr(each["guided"], clock) for each in rounds]
        return round(statistics.median(kept), 4)

    frames = number * arguments.frames
    guided = [sum(trailer.num_guided_frames for trailer in each["guided"].trailers) for each in rounds]
    return {
        "pairs": number,
        "frames": arguments.frames,
        "share": arguments.share,
        "kv_blocks": arm.num_blocks,
        "rounds": arguments.rounds,
        "cfg_retention": ratio("wall_s"),
        "cfg_retention_cpu": ratio("cpu_s"),
        "frames_per_s": {
            name: round(statistics.median(frames / each[name].wall_s for each in rounds), 1) for name in arms
        },
        "unguided_total": sum(frames - each for each in guided),
        "wrong_frames": sum(
            num_wrong(rows, expected)
            for each in rounds
            for name in arms
            for rows, expected in zip(each[name].rows, alone[name], strict=True)
        ),
        "preemptions": {
            name: sum(trailer.num_preemptions for each in rounds for trailer in each[name].trailers) for name in arms
        },
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "pairs")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 4, 16], help="replies at once")
    parser.add_argument("--frames", type=int, default=96, help="frames of each reply")
    parser.add_argument("--share", type=float, default=0.75, help="of the KV blocks that all pairs take at their end")
    parser.add_argument("--rounds", type=int, default=5, help="times that the arms take turns")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    cpu_kernels.install()
    with tempfile.TemporaryDirectory() as folder:
        converted = convert(Path(folder))
        for pairs in given.pairs:
            append_result(given.out, "pairs", measure(converted, pairs, given))
