"""KV-cache cost of guidance: blocks held over time by guided replies, divided by those held by unguided ones.

    python -m benchmarks.kv --requests 8 --text 150 --frames 500

Replies have a text segment and then audio, on random weights with the layout of a published model; one run is guided,
one is not. The blocks in use are counted after every step; a block that several requests share counts once.
`kv_per_guided_request` is the ratio of the sums. It would be 2.0 if every reply held two complete halves from its first
row. `prefill_saved` is the share of the unconditional halves' rows before the audio that the prefix cache provided. One
line of JSON.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engines import forced_prompt, layout_engine
from benchmarks.harness import append_result, command_line
from benchmarks.layouts import LAYOUTS
from stretto.streams.layout import Segment


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both arms; replies begin `--stagger` steps after one another."""
    with tempfile.TemporaryDirectory() as folder:
        family, engine = layout_engine(Path(folder), arguments.layout, arguments.requests)
        task = next(task for task in family.tasks if task.segments[-2:] == (Segment.TEXT, Segment.AUDIO))

        def run(scale: float) -> tuple[int, dict[str, tuple[int, int]]]:
            """Return the sum of blocks in use, and (rows, cached rows) of each unconditional request."""
            assert engine.scheduler.reset_prefix_cache()
            prompts = [
                forced_prompt(family, task, seed, arguments.frames, arguments.text, scale)
                for seed in range(arguments.requests)
            ]
            pool, step, block_steps = engine.scheduler.kv_cache_manager.block_pool, 0, 0
            contexts: dict[str, tuple[int, int]] = {}
            while prompts or engine.scheduler.has_requests():
                while prompts and (arguments.requests - len(prompts)) * arguments.stagger <= step:
                    engine.add_prompts([prompts.pop(0)])
                engine.step()
                step += 1
                block_steps += pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # vLLM keeps one for itself
                for request in engine.scheduler.running:
                    stats, is_half = request.prefill_stats, engine.scheduler.table[request.request_id].is_unconditional
                    if is_half and stats is not None:
                        contexts[request.request_id] = (request.num_prompt_tokens, stats.num_local_cached_tokens)
            return block_steps, contexts

        (guided, contexts), (unguided, _) = run(arguments.guidance), run(1.0)
    assert len(contexts) == arguments.requests
    num_rows, num_found = (sum(each) for each in zip(*contexts.values(), strict=True))
    return {
        "layout": arguments.layout,
        "requests": arguments.requests,
        "text_rows": arguments.text,
        "frames": arguments.frames,
        "stagger_steps": arguments.stagger,
        "kv_per_guided_request": round(guided / unguided, 4),
        "prefill_saved": round(num_found / num_rows, 4),
        "prefill_rows": num_rows,
        "prefill_rows_saved": num_found,
    }


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "kv",
        layout=("bagpiper-small", f"one of {sorted(LAYOUTS)}"),
        requests=(8, "replies at once"),
        text=(150, "rows of the text segment"),
        frames=(500, "frames of the audio segment"),
        stagger=(4, "steps between the starts of two replies"),
        guidance=(3.0, "guidance scale"),
    ).parse_args()
    append_result(given.out, "kv", measure(given))
