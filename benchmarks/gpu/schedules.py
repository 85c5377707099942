"""Job that compares VITA-Audio's schedules with the schedule Vanilla, in turns.

`over_vanilla` is ids per second divided by the ids per second of Vanilla. `allowed` is the same ratio computed from the
weights that are read per id: the main model reads all of its weights for an id, a module a layer, a projection and the
head. `first_block_s` is the time from queueing until every reply is long enough for the decoder's first block of 31
codes. It assumes that words and codes alternate as in training, because random weights generate ids of any kind.
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.engines import SteppedEngine
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.models import GRAPHS, MODELS, PIECES, PromptMaker
from benchmarks.gpu.speed import Arm
from stretto.families.vita_audio.bursts import BurstSchedule
from stretto.families.vita_audio.family import SCHEDULES, VANILLA

FIRST_BLOCK = 25 + 6  # `codecs/glm4_voice.py`
TRAINED = {"balance": SCHEDULES["balance"]}  # the other schedules use Boost's training ratio


@dataclass(frozen=True)
class Timed:
    """Seconds from queueing until all replies have ended, and until all have the ids for their first block."""

    wall_s: float
    first_block_s: float


def run(setup: Setup, requests: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield a line with the start-up time, then a line for each schedule at each number of requests."""
    begun = time.perf_counter()
    requests = requests[:1] if setup.is_small else requests
    num_ids, rounds = (22, 1) if setup.is_small else (110, 3)
    names = (VANILLA, "turbo") if setup.is_small else tuple(SCHEDULES)
    arm = Arm("vita", setup, requests, GRAPHS[PIECES])
    yield {"part": "start", "start_s": round(time.perf_counter() - begun, 1)}
    prompts = PromptMaker(arm.family)
    config = arm.engine.core.vllm_config.model_config.hf_config.to_dict()
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
    """Run `number` replies of `num_ids` ids with one schedule and return their times."""
    made_prompts = prompts.make(number, MODELS["vita"].task, 1.0, num_ids, num_ids)
    made_prompts = [replace(prompt, sampling=replace(prompt.sampling, schedule=name)) for prompt in made_prompts]
    begun = time.perf_counter()
    needed = ids_after(name, passes(name, num_codes))
    first_block_s = math.inf
    engine.add_prompts(made_prompts)
    while engine.scheduler.has_requests() or engine.core.batch_queue:
        engine.step()
        lengths = [len(request.output_token_ids) for request in engine.scheduler.requests.values()]
        if first_block_s == math.inf and min(lengths, default=num_ids) >= needed:
            first_block_s = time.perf_counter() - begun
    return Timed(time.perf_counter() - begun, first_block_s)


def allowed(mode: Sequence[int], config: Mapping[str, Any]) -> float:
    """Return the weights that Vanilla reads per id, divided by the weights that the last pair of `mode` reads per id.

    Args:
        mode: Schedule as pairs: the number of ids from the main model, then from modules.
        config: Configuration of the main model; it counts only the main layers.
    """
    width = config["hidden_size"]
    inner = config["intermediate_size"]
    keys = 2 * width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = width * (2 * width + keys + 3 * inner)
    head = width * config["vocab_size"]
    main = config["num_hidden_layers"] * layer + head
    module = layer + 2 * width * width + head
    of_main, of_modules = mode[-2:]
    return main * (of_main + of_modules) / (of_main * main + of_modules * module)


def is_code(ratio: Sequence[int]) -> Iterator[bool]:
    """For each id of a reply that alternates as in training, yield True if it is a code.

    An audio turn begins and ends with a marker.
    """
    turn = 0
    while True:
        text, audio = (sizes[min(turn, len(sizes) - 1)] for sizes in (ratio[::2], ratio[1::2]))
        yield from [False] * (text + 1) + [True] * (audio - 2) + [False]
        turn += 1


def passes(schedule: str, num_codes: int) -> int:
    """Return how many forward passes of the main model it takes until a reply has `num_codes` codes."""
    burst = BurstSchedule(schedule, SCHEDULES[schedule])
    kinds = is_code(TRAINED.get(schedule, SCHEDULES["boost"]))
    index = steps = 0
    while num_codes > 0:
        size = 1 + burst.num_extra(index)
        num_codes -= sum(next(kinds) for _ in range(size))
        index = index + size
        steps = steps + 1
    return steps


def ids_after(schedule: str, num_passes: int) -> int:
    """Return how many ids a reply has after `num_passes` forward passes of the main model."""
    burst = BurstSchedule(schedule, SCHEDULES[schedule])
    index = 0
    for _ in range(num_passes):
        index += 1 + burst.num_extra(index)
    return index
