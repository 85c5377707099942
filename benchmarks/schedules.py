"""Measure what VITA-Audio's schedules gain: ids per processor-second relative to Vanilla, and passes to first sound.

    python -m benchmarks.schedules --streams 1 4 16 --ids 55

A randomly initialised model with the published proportions (28 layers, 10 modules, the published ratio of head to
layer) generates greedy replies. The schedules take turns, `--rounds` times. `allowed` is the speed-up that would result
if only reading weights took time. An id from the main model reads all of its weights. An id from a module reads a
layer, a projection and the head. `passes` counts the main model's forward passes from the start of the reply, with
words and codes alternating as in training. They are counted until the first code, and until the decoder's first block
of 25 codes and the 6 codes after it. The benchmark writes one line of JSON for each schedule and number of streams.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.engines import SteppedEngine, engine_args
from benchmarks.harness import append_result, command_line, median_ratio
from lab.releases.random_vita import MODULES, SMALL, tensors
from stretto.families.vita_audio.bursts import BurstSchedule
from stretto.families.vita_audio.family import MARKERS, SCHEDULES, VANILLA, VitaVocabulary, vita_audio
from stretto.records.prompt import Prompt

LAYERS = 28
# Hidden size, inner size and number of ids are an eighth of the published ones. Attention needs a head width of 32.
CONFIG: dict[str, Any] = {
    **SMALL,
    "num_hidden_layers": LAYERS + MODULES,
    "hidden_size": 448,
    "intermediate_size": 2368,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 21_009,
}
MAIN = CONFIG | {"num_hidden_layers": LAYERS}
VOCABULARY = VitaVocabulary(
    vocab_size=CONFIG["vocab_size"],
    first_audio=18_960,
    codebook_size=2048,
    markers={name: 18_950 + at for at, name in enumerate(MARKERS)},
    num_modules=MODULES,
)
FAMILY = vita_audio(VOCABULARY)
FIRST_BLOCK = 25 + 6  # `codecs/glm4_voice.py`
TRAINED = {"balance": SCHEDULES["balance"]}  # the other schedules use Boost's training ratio


def write_checkpoint(folder: Path) -> None:
    """Write the randomly initialised model as the converter would."""
    save_file(tensors(CONFIG, 0), folder / "model.safetensors")
    names = {"architectures": ["StrettoQwen2ForCausalLM"], "model_type": "qwen2", "dtype": "float32"}
    vocabulary = {"speech_family": FAMILY.name, "speech_vocabulary": VOCABULARY.to_record()}
    (folder / "config.json").write_text(json.dumps({**MAIN, **names, **vocabulary}))


def prompt(schedule: str, seed: int, num_ids: int) -> Prompt:
    """Return a short prompt whose reply has `num_ids` ids."""
    task = FAMILY.task("dialogue")
    text = replace(task.sampling.text, min_rows=num_ids, max_rows=num_ids)
    rows = np.random.default_rng(seed).integers(0, 18_000, (16, 1)).astype(np.int32)
    return Prompt(task.name, rows, replace(task.sampling, text=text, seed=seed, schedule=schedule))


def ids_per_second(engine: SteppedEngine, schedule: str, streams: int, num_ids: int) -> float:
    """Return the ids generated per second of this process's processor time, excluding the prompts."""
    engine.add_prompts([prompt(schedule, seed, num_ids) for seed in range(streams)])
    while engine.num_decoding() < streams:
        engine.step()
    began = time.process_time()
    engine.finish()
    return streams * num_ids / (time.process_time() - began)


def allowed(mode: Sequence[int], config: Mapping[str, Any] = MAIN) -> float:
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


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all schedules in turns; yield a record for each schedule and number of streams."""
    speeds: dict[int, dict[str, list[float]]] = {n: {name: [] for name in SCHEDULES} for n in arguments.streams}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        args = engine_args(256, 8, max_num_batched_tokens=256, kv_cache_memory_bytes=256 << 20)
        engine = SteppedEngine.from_args(Path(folder), args)
        for _ in range(arguments.rounds):
            for streams, by_name in speeds.items():
                for name, speeds_of_schedule in by_name.items():
                    speeds_of_schedule.append(ids_per_second(engine, name, streams, arguments.ids))
    for streams, by_name in speeds.items():
        for name, mode in SCHEDULES.items():
            yield {
                "schedule": name,
                "streams": streams,
                "ids": arguments.ids,
                "rounds": arguments.rounds,
                "ids_per_s": round(statistics.median(by_name[name]), 1),
                "over_vanilla": round(median_ratio(by_name[name], by_name[VANILLA]), 2),
                "allowed": round(allowed(mode), 2),
                "passes_to_first_code": passes(name, 1),
                "passes_to_first_block": passes(name, FIRST_BLOCK),
            }


if __name__ == "__main__":
    parsed = command_line(
        __doc__,
        "schedules",
        streams=([1, 4, 16], "numbers of simultaneous replies"),
        ids=(55, "ids per reply"),
        rounds=(3, "number of turns for each schedule"),
    ).parse_args()
    for figures in measure(parsed):
        append_result(parsed.out, "schedules", figures)
