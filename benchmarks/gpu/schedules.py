"""Several ids per forward pass: VITA-Audio's schedules against Vanilla, and the time to the first block.

`over_vanilla` is ids per second over those of Vanilla, in turns, with replies that start together. `allowed` is the
same ratio computed from the weights that are read per id. `first_block_s` is the time from the queue until every reply
has as many ids as contain the 31 codes of the decoder's first block, with words and codes alternating as in training;
random weights generate ids of any kind.
"""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.engines import SteppedEngine
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.models import MODELS, PromptMaker
from benchmarks.gpu.speed import Arm
from benchmarks.schedules import FIRST_BLOCK, allowed, ids_after, passes
from stretto.families.vita_audio.family import SCHEDULES, VANILLA


@dataclass(frozen=True)
class Timed:
    """Seconds from the queue to the end of all replies, and until all had the ids of their first block."""

    wall_s: float
    first_block_s: float


def run(setup: Setup, requests: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield a line for the start, then one for each schedule at each number of requests."""
    begun = time.perf_counter()
    requests = requests[:1] if setup.is_small else requests
    num_ids, rounds = (22, 1) if setup.is_small else (110, 3)
    names = (VANILLA, "turbo") if setup.is_small else tuple(SCHEDULES)
    arm = Arm("vita", setup, requests, is_compiled=True)
    yield {"part": "start", "start_s": round(time.perf_counter() - begun, 1)}
    prompts, config = PromptMaker(arm.family), arm.engine.core.vllm_config.model_config.hf_config.to_dict()
    for number in requests:
        turns = [
            {
                name: one(arm.engine, prompts, number, name, num_ids, 1 if setup.is_small else FIRST_BLOCK)
                for name in names
            }
            for _ in range(rounds + (not setup.is_small))
        ][-rounds:]
        for name in names:
            wall_s = statistics.median(turn[name].wall_s for turn in turns)
            over = statistics.median(turn[VANILLA].wall_s / turn[name].wall_s for turn in turns)
            first_block_s = statistics.median(turn[name].first_block_s for turn in turns)
            yield {
                "part": "schedule",
                "schedule": name,
                "requests": number,
                "ids_per_s": round(number * num_ids / wall_s, 1),
                "over_vanilla": round(over, 3),
                "allowed": round(allowed(SCHEDULES[name], config), 3),
                "first_block_s": round(first_block_s, 5),
            }


def one(engine: SteppedEngine, prompts: PromptMaker, number: int, name: str, num_ids: int, num_codes: int) -> Timed:
    """Run `number` replies of `num_ids` ids on one schedule."""
    made = prompts.make(number, MODELS["vita"].task, 1.0, num_ids, num_ids)
    made = [replace(prompt, sampling=replace(prompt.sampling, schedule=name)) for prompt in made]
    begun, needed, first_block_s = time.perf_counter(), ids_after(name, passes(name, num_codes)), math.inf
    engine.add_prompts(made)
    while engine.scheduler.has_requests() or engine.core.batch_queue:
        engine.step()
        lengths = [len(request.output_token_ids) for request in engine.scheduler.requests.values()]
        if first_block_s == math.inf and min(lengths, default=num_ids) >= needed:
            first_block_s = time.perf_counter() - begun
    return Timed(time.perf_counter() - begun, first_block_s)
