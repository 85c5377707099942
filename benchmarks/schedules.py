"""What VITA-Audio's schedules gain: ids per processor-second over Vanilla's, and passes until something is heard.

    python -m benchmarks.schedules --streams 1 4 16 --ids 55

Greedy replies of a random model of the published proportions (28 layers, 10 modules, a head as large against a layer
as that of 168,072 ids), each schedule in turn, `--rounds` times. `allowed` is what the arithmetic allows where reading
the weights is all: those of the main model for each of its ids, and a layer, a projection and the head for each of a
module's. `passes` are those of the main model from the reply's first on, words and codes taking turns as each model was
trained: to the first code, and to the first block of 25 codes with the 6 that its decoder waits for. One line of JSON
for each schedule at each number of streams.
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

from benchmarks.checkpoints.random_vita import MODULES, SMALL, tensors
from benchmarks.results_file import append_result, command_line
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.base import BurstSchedule
from stretto.families.vita_audio.family import MARKERS, SCHEDULES, VANILLA, VitaVocabulary, vita_audio
from stretto.records.prompt import Prompt

prepare_environment()

from benchmarks.stepped_engine import SteppedEngine  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import sampling_params  # noqa: E402

LAYERS = 28
# Hidden size, inner size and ids are the published ones over 8; a head of 32 numbers is the least that attention takes.
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
FIRST_BLOCK = 25 + 6  # `codecs/glm4_voice/codec.py`
TRAINED = {"balance": SCHEDULES["balance"]}  # the others with Boost's ratio


def write_checkpoint(folder: Path) -> None:
    """The random model, as the converter would write it."""
    save_file(tensors(CONFIG, 0), folder / "model.safetensors")
    names = {"architectures": ["StrettoQwen2ForCausalLM"], "model_type": "qwen2", "dtype": "float32"}
    vocabulary = {"speech_family": FAMILY.name, "speech_vocabulary": VOCABULARY.to_record()}
    (folder / "config.json").write_text(json.dumps({**MAIN, **names, **vocabulary}))


def prompt(schedule: str, seed: int, num_ids: int) -> Prompt:
    """A short prompt, to be answered with so many ids."""
    task = FAMILY.task("dialogue")
    text = replace(task.sampling.text, min_rows=num_ids, max_rows=num_ids)
    rows = np.random.default_rng(seed).integers(0, 18_000, (16, 1)).astype(np.int32)
    return Prompt(task.name, rows, replace(task.sampling, text=text, seed=seed, schedule=schedule))


def ids_per_second(engine: SteppedEngine, schedule: str, streams: int, num_ids: int) -> float:
    """Ids per second of this process's processor time, prompts read before."""
    rules = engine.scheduler.table.rules
    prompts = [prompt(schedule, seed, num_ids) for seed in range(streams)]
    engine.add([each.rows[:, 0].tolist() for each in prompts], [sampling_params(each, rules) for each in prompts])
    while engine.num_decoding() < streams:
        engine.step()
    began = time.process_time()
    while engine.scheduler.has_requests():
        engine.step()
    return streams * num_ids / (time.process_time() - began)


def allowed(mode: Sequence[int], config: Mapping[str, Any] = MAIN) -> float:
    """Weights that Vanilla reads for an id over those that the last pair of `mode` reads for one.

    config: the numbers of the main model, those of its layers alone.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = 2 * width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer, head = width * (2 * width + keys + 3 * inner), width * config["vocab_size"]
    main, module = config["num_hidden_layers"] * layer + head, layer + 2 * width * width + head
    of_main, of_modules = mode[-2:]
    return main * (of_main + of_modules) / (of_main * main + of_modules * module)


def is_code(ratio: Sequence[int]) -> Iterator[bool]:
    """Whether each id of a reply as trained is a code; of an audio turn the first and the last are markers."""
    turn = 0
    while True:
        text, audio = (sizes[min(turn, len(sizes) - 1)] for sizes in (ratio[::2], ratio[1::2]))
        yield from [False] * (text + 1) + [True] * (audio - 2) + [False]
        turn += 1


def passes(schedule: str, num_codes: int) -> int:
    """Forward passes of the main model until a reply has so many codes."""
    burst, kinds = BurstSchedule(schedule, SCHEDULES[schedule]), is_code(TRAINED.get(schedule, SCHEDULES["boost"]))
    index = steps = 0
    while num_codes > 0:
        size = 1 + burst.num_extra(index)
        num_codes -= sum(next(kinds) for _ in range(size))
        index, steps = index + size, steps + 1
    return steps


def ids_after(schedule: str, num_passes: int) -> int:
    """How many ids a reply has after so many forward passes of the main model."""
    burst, index = BurstSchedule(schedule, SCHEDULES[schedule]), 0
    for _ in range(num_passes):
        index += 1 + burst.num_extra(index)
    return index


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All schedules in turns, by number of streams."""
    speeds: dict[int, dict[str, list[float]]] = {n: {name: [] for name in SCHEDULES} for n in arguments.streams}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        args = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16, "block_size": 32}
        args |= {"max_num_batched_tokens": 256, "kv_cache_memory_bytes": 256 << 20, "enforce_eager": True}
        engine = SteppedEngine(vllm_config(EngineConfig(Path(folder), args)))
        for _ in range(arguments.rounds):
            for streams, by_name in speeds.items():
                for name, found in by_name.items():
                    found.append(ids_per_second(engine, name, streams, arguments.ids))
    for streams, by_name in speeds.items():
        for name, mode in SCHEDULES.items():
            yield {
                "schedule": name,
                "streams": streams,
                "ids": arguments.ids,
                "rounds": arguments.rounds,
                "ids_per_s": round(statistics.median(by_name[name]), 1),
                "over_vanilla": round(statistics.median(_ratios(by_name[name], by_name[VANILLA])), 2),
                "allowed": round(allowed(mode), 2),
                "passes_to_first_code": passes(name, 1),
                "passes_to_first_block": passes(name, FIRST_BLOCK),
            }


def _ratios(mine: list[float], vanilla: list[float]) -> list[float]:
    return [a / b for a, b in zip(mine, vanilla, strict=True)]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "schedules")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16], help="replies at once")
    parser.add_argument("--ids", type=int, default=55, help="of a reply")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    for figures in measure(given):
        append_result(given.out, "schedules", figures)
