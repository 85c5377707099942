"""OpusLM in its true shapes: step time, first audio against its floor, seconds of audio per second.

Random bfloat16 weights, made on the device; config.json as the converter writes it, with the published vocabulary and
streams. No torch.compile, so that a start is short. Bagpiper's 8B is what the section `throughput` measures.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stretto.checkpoints.backbone import OLMO2_7B, SMOLLM2_1_7B, config_of
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.base import Family
from stretto.families.registry import NAME, VOCABULARY, read_family
from stretto.records.prompt import Prompt
from stretto.streams.segment import Segment

from benchmarks.gpu.first_audio import figures, first_rows, make_codec, time_burst
from benchmarks.gpu.sections import Setup
from benchmarks.gpu.shapes import WITHOUT_COMPILER, random_engine_args
from benchmarks.layouts import PROMPT_ROWS

prepare_environment()

from stretto.engine.frontend.launch import vllm_config  # noqa: E402
from stretto.engine.request.params import sampling_params  # noqa: E402

from benchmarks.stepped_engine import SteppedEngine  # noqa: E402


@dataclass(frozen=True)
class Published:
    """A family over a backbone."""

    family: str
    backbone: Mapping[str, Any]


MODELS = {"opuslm_7b": Published("opuslm", OLMO2_7B), "opuslm_1b7": Published("opuslm", SMOLLM2_1_7B)}
REQUESTS = (1, 8, 16, 32, 64)
FRAMES, ROUNDS = 96, 2
DRY_FRAMES, DRY_REQUESTS = 60, (2,)
DRY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def read_model(name: str, setup: Setup) -> tuple[dict[str, Any], Family]:
    """What config.json says, and the family over the published vocabulary."""
    published = MODELS[name]
    family = read_family({NAME: published.family})
    backbone = {**published.backbone, **(DRY if setup.is_small else {})}
    record = config_of(backbone, family.layout.vocab_size, "float32" if setup.is_small else "bfloat16")
    return record | {NAME: published.family, VOCABULARY: None}, family


def engine_args(setup: Setup, requests: tuple[int, ...]) -> dict[str, Any]:
    """vLLM's arguments: all replies at once, a graph for every number of them."""
    dtype = "float32" if setup.is_small else "bfloat16"
    compilation = {**WITHOUT_COMPILER, "cudagraph_capture_sizes": list(requests)}
    return random_engine_args(setup, dtype, requests[-1], compilation)


class PublishedArm:
    """One model, and replies of forced length that start together."""

    def __init__(self, name: str, setup: Setup, folder: Path):
        self._setup = setup
        self.frames = DRY_FRAMES if setup.is_small else FRAMES
        self.requests = DRY_REQUESTS if setup.is_small else REQUESTS
        record, self.family = read_model(name, setup)
        (folder / "config.json").write_text(json.dumps(record))
        args = engine_args(setup, self.requests)
        self.engine = SteppedEngine(vllm_config(EngineConfig(folder, args)))
        self._codec = make_codec(self.family, setup.device, setup.is_small)
        self._task = next(task for task in self.family.tasks if task.segments == (Segment.AUDIO,))
        self._random, self._seeds = np.random.default_rng(0), itertools.count()

    def _prompts(self, number: int) -> list[Prompt]:
        """`number` prompts of random text, none like another."""
        sampling, layout = self._task.sampling, self.family.layout
        audio = replace(sampling.audio, min_rows=self.frames, max_rows=self.frames)
        assert self.family.subwords is not None
        prompts = []
        for _ in range(number):
            rows = np.full((PROMPT_ROWS, layout.num_input_streams), layout.pad_id, np.int32)
            rows[:, 0] = self._random.integers(self.family.subwords.start, self.family.subwords.stop, PROMPT_ROWS)
            forced = replace(sampling, audio=audio, seed=next(self._seeds))
            prompts.append(Prompt(self._task.name, rows, forced))
        return prompts

    def measure(self, number: int) -> dict[str, Any]:
        """The figures of `number` replies at once; the first round warms up."""
        first, streams = first_rows(self.family, self._codec), self.family.layout.num_output_streams
        bursts = []
        for _ in range(1 + (1 if self._setup.is_small else ROUNDS)):
            prompts = self._prompts(number)
            params = [sampling_params(prompt, self.engine.scheduler.table.rules) for prompt in prompts]
            ids = self.engine.add([prompt.rows[:, 0].tolist() for prompt in prompts], params)
            bursts.append(time_burst(self.engine, ids, number, first, streams))
        return figures(bursts[1:], self.family, self._codec, number, self.frames)


def _run(name: str, setup: Setup) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        arm = PublishedArm(name, setup, Path(folder))
        yield {"model": name, "part": "start", "start_s": round(time.perf_counter() - begun, 1)}
        for number in arm.requests:
            load = {"requests": number, "frames": arm.frames}
            yield {"model": name, "part": "speed", **load, **arm.measure(number)}


def run_opuslm_7b(setup: Setup) -> Iterator[dict[str, Any]]:
    """OpusLM over OLMo 2 7B."""
    yield from _run("opuslm_7b", setup)


def run_opuslm_1b7(setup: Setup) -> Iterator[dict[str, Any]]:
    """OpusLM over SmolLM2 1.7B."""
    yield from _run("opuslm_1b7", setup)
