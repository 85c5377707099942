"""Waiting time of requests of one kind while many of the other kind are queued, with and without `kv_share`.

    python -m benchmarks.mixed --crowd 32 --guests 3

The kinds are understanding audio and generating speech. A crowd of one kind fills the queue; then guests of the other
kind arrive one after another. Measured are the time from a guest's arrival to its first row, and the time until the
crowd is done. Two engines take turns over the same random checkpoint: one without `kv_share`, one with it. Times are
processor time of this process. One line of JSON for each kind of crowd.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engines import HIDDEN, LAYERS, SteppedEngine, engine_args, forced_prompt
from benchmarks.harness import append_result, command_line
from benchmarks.layouts import LISTEN, MIXED, SPEAK
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint

KINDS = {"understanding": (LISTEN, 700, 1.0), "generation": (SPEAK, 53, 3.0)}  # task, rows of a prompt, guidance scale
REPLY_ROWS = 150


def make_prompt(kind: str, seed: int) -> Prompt:
    """Return a prompt of its kind's length, with a reply of `REPLY_ROWS` rows."""
    task, num_rows, scale = KINDS[kind]
    return forced_prompt(MIXED, task, seed, REPLY_ROWS, REPLY_ROWS, scale, num_rows=num_rows)


def run(engine: SteppedEngine, kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run a crowd of `kind` and guests of the other kind; return the seconds that guests wait and the crowd takes."""
    (other,) = set(KINDS) - {kind}
    assert engine.scheduler.reset_prefix_cache()
    crowd = set(engine.add_prompts([make_prompt(kind, seed) for seed in range(arguments.crowd)]))
    arrived, waited = dict[str, float](), dict[str, float]()
    begun = done = time.process_time()
    while engine.scheduler.has_requests() or len(arrived) < arguments.guests:
        if len(arrived) * arguments.interval_s <= time.process_time() - begun and len(arrived) < arguments.guests:
            (guest,) = engine.add_prompts([make_prompt(other, 1000 + len(arrived))])
            arrived[guest] = time.process_time()
        for output in engine.outputs():
            now = time.process_time()
            if output.request_id in arrived:
                waited.setdefault(output.request_id, now - arrived[output.request_id])
            elif output.request_id in crowd and output.finish_reason is not None:
                done = now
    waits = list(waited.values())
    return {"guest_wait_s": statistics.median(waits), "guest_wait_max_s": max(waits), "crowd_s": done - begun}


def main(arguments: argparse.Namespace) -> None:
    """Measure both kinds of crowd and write a line for each."""
    shares = {"understanding": arguments.understanding, "generation": arguments.generation}
    args = engine_args(MIXED.max_model_len, arguments.crowd, num_gpu_blocks_override=arguments.blocks)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), MIXED, "benchmark_mixed", HIDDEN, LAYERS)
        arms = {name: SteppedEngine.from_args(checkpoint, args, kv) for name, kv in (("without", {}), ("with", shares))}
        for kind in KINDS:
            rounds = [{name: run(arm, kind, arguments) for name, arm in arms.items()} for _ in range(arguments.rounds)]
            append_result(arguments.out, "mixed", describe(kind, shares, rounds, arguments))


def describe(kind: str, shares: dict[str, float], rounds: list[dict], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one kind of crowd: medians over the rounds."""
    return {
        "layout": MIXED.name,
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


if __name__ == "__main__":
    main(
        command_line(
            __doc__,
            "mixed",
            crowd=(32, "requests of one kind, all at once"),
            guests=(3, "requests of the other kind"),
            interval_s=(0.2, "seconds between the arrivals of two guests"),
            blocks=(161, "KV blocks, of 32 rows each"),
            understanding=(0.6, "share of the cache for requests that understand audio"),
            generation=(0.6, "share of the cache for requests that generate speech"),
            rounds=(3, "turns of each engine"),
        ).parse_args()
    )
