"""KV blocks that guidance costs: those held over time by guided replies, over those held by unguided ones.

    python -m benchmarks.kv --requests 8 --text 150 --frames 500

Replies of a text segment and then audio, on random weights with the layout of a published model; one run with guidance,
one without. Every step counts the blocks in use, a block that several requests share once. `kv_per_guided_request` is
the ratio of the sums: 2.0 if every reply held two full halves from its first row. `prefill_saved` is the share of the
unconditional halves' rows before the audio that were found in the prefix cache. One line of JSON.
"""

import argparse
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layout import HIDDEN, LAYERS, engine_args
from benchmarks.published_layouts import LAYOUTS, PROMPT_ROWS, TEXT
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.records.prompt import Prompt
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from benchmarks.stepped_engine import SteppedEngine  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import sampling_params  # noqa: E402


@dataclass
class Usage:
    """block_steps: blocks in use, summed over the steps. contexts: for each unconditional half, the rows that it began
    with and how many of them were found."""

    block_steps: int = 0
    contexts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def look(self, scheduler: Any) -> None:
        """Count after a step."""
        pool = scheduler.kv_cache_manager.block_pool
        self.block_steps += pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # vLLM keeps one for itself
        for request in scheduler.running:
            stats, is_half = request.prefill_stats, scheduler.table[request.request_id].is_unconditional
            if is_half and stats is not None:
                self.contexts[request.request_id] = (request.num_prompt_tokens, stats.num_local_cached_tokens)


class KvArm:
    """Replies over one layout's random checkpoint."""

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        name, self.family = LAYOUTS[arguments.layout]
        self._task = next(task for task in self.family.tasks if len(task.segments) == 2)
        write_checkpoint(folder, self.family, name, HIDDEN, LAYERS)
        args = engine_args(self.family.max_model_len, arguments.requests)
        self._engine = SteppedEngine(vllm_config(EngineConfig(folder, args)))

    def run(self, scale: float, arguments: argparse.Namespace) -> Usage:
        """The replies, each of which begins `--stagger` steps after the one before."""
        engine, usage = self._engine, Usage()
        assert engine.scheduler.reset_prefix_cache()
        prompts = [self._prompt(scale, seed, arguments) for seed in range(arguments.requests)]
        step = 0
        while prompts or engine.scheduler.has_requests():
            while prompts and (arguments.requests - len(prompts)) * arguments.stagger <= step:
                prompt = prompts.pop(0)
                rules = engine.scheduler.table.rules
                engine.add([prompt.rows[:, 0].tolist()], [sampling_params(prompt, rules)])
            engine.step()
            usage.look(engine.scheduler)
            step += 1
        return usage

    def _prompt(self, scale: float, seed: int, arguments: argparse.Namespace) -> Prompt:
        rows = np.zeros((PROMPT_ROWS, self.family.layout.num_input_streams), np.int32)
        rows[:, 0] = np.random.default_rng(seed).integers(TEXT.start, TEXT.stop, PROMPT_ROWS)
        sampling = self._task.sampling
        text = replace(sampling.text, min_rows=arguments.text, max_rows=arguments.text)
        audio = replace(sampling.audio, min_rows=arguments.frames, max_rows=arguments.frames)
        assert self._task.segments[-1] is Segment.AUDIO
        return Prompt(self._task.name, rows, replace(sampling, text=text, audio=audio, guidance_scale=scale, seed=seed))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both runs, and the ratio between them."""
    with tempfile.TemporaryDirectory() as folder:
        arm = KvArm(Path(folder), arguments)
        guided, unguided = arm.run(arguments.guidance, arguments), arm.run(1.0, arguments)
    assert len(guided.contexts) == arguments.requests
    num_rows, num_found = (sum(each) for each in zip(*guided.contexts.values(), strict=True))
    return {
        "layout": arguments.layout,
        "requests": arguments.requests,
        "text_rows": arguments.text,
        "frames": arguments.frames,
        "stagger_steps": arguments.stagger,
        "kv_per_guided_request": round(guided.block_steps / unguided.block_steps, 4),
        "prefill_saved": round(num_found / num_rows, 4),
        "prefill_rows": num_rows,
        "prefill_rows_saved": num_found,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "kv")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="bagpiper-small")
    parser.add_argument("--requests", type=int, default=8, help="replies at once")
    parser.add_argument("--text", type=int, default=150, help="rows of the text segment")
    parser.add_argument("--frames", type=int, default=500, help="frames of the audio segment")
    parser.add_argument("--stagger", type=int, default=4, help="steps between the beginnings of two replies")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    append_result(given.out, "kv", measure(given))
