"""Measure the cost of sampling the codes of a frame one after another with a depth transformer.

    python -m benchmarks.frames --requests 1 4 16 --frames 48

Decode steps of CSM's shape are compared with steps of the same backbone and streams whose heads sample all codes in
parallel. Both engines run in this process with random weights. They are an eighth as wide as `sesame/csm-1b` and have
as many layers and codebooks. They take turns, and a figure is the median over the rounds. `depth_cost` is the step time
with the depth transformer divided by the step time without it. `depth_cost_cpu` is the same ratio in processor time.
`depth_cpu_ms_per_code` is the difference in processor time divided by the number of codes. A third engine has a set of
depth weights for each code: `by_step_over_shared` is that difference of this engine divided by the first engine's. The
benchmark writes one line of JSON for each number of requests.

`benchmarks.ensemble --family` uses this module to measure the parts of a frame after the served loads. The engine and
the decoder run in this process, one after the other, on one thread. Figures are milliseconds of processor time per
frame, in steps in which every reply decodes:

    talker      forward pass of the backbone
    predictor   all codes after the first, with their heads and sampling
    rest        everything else in a step: scheduling, preparation, bookkeeping, the first code
    codec       a steady chunk in the decoder
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import SteppedEngine, StepTime, engine_args, forced_prompt
from benchmarks.harness import append_result, command_line, median_ratio
from benchmarks.layouts import BY_STEP, CSM, NUM_TEXT_IDS, PARALLEL
from lab.releases.small_models import SmallModel
from lab.texts import texts
from plugins.qwen3_omni.lab.random_qwen3_omni import PLAIN_IDS, question
from stretto import cpu_backend as cpu_kernels
from stretto.config import DecoderConfig
from stretto.engine.environment import prepare_environment
from stretto.family.base import Family
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts

HIDDEN = 256
LAYERS = 16
PROMPT_ROWS = 40


class Arm:
    """Replies of one family from a randomly initialised checkpoint."""

    def __init__(self, folder: Path, family: Family, name: str, max_requests: int):
        self._family = family
        checkpoint = write_checkpoint(folder / family.name, family, name, HIDDEN, LAYERS, backbone="llama")
        self._engine = SteppedEngine.from_args(checkpoint, engine_args(family.max_model_len, max_requests))

    def time_steps(self, number: int, frames: int) -> StepTime:
        """Return the median step time while `number` replies of `frames` frames decode."""
        task = self._family.tasks[0]
        ids = range(5, NUM_TEXT_IDS)
        prompts = [
            forced_prompt(self._family, task, seed, frames, num_rows=PROMPT_ROWS, ids=ids) for seed in range(number)
        ]
        return self._engine.time_steps(*self._engine.requests(prompts), number)


def measure(number: int, frames: int, num_rounds: int, arms: dict[str, Arm]) -> dict[str, Any]:
    """Run the arms in turns and return the ratios between them."""
    for arm in arms.values():
        arm.time_steps(number, frames)
    turns = [{name: arm.time_steps(number, frames) for name, arm in arms.items()} for _ in range(num_rounds)]
    cpu = {name: [turn[name].cpu_ms for turn in turns] for name in arms}
    walls = ([turn[name].wall_ms for turn in turns] for name in ("depth", "parallel"))
    of_depth, by_step = (
        [a - b for a, b in zip(cpu[name], cpu["parallel"], strict=True)] for name in ("depth", "by_step")
    )
    return {
        "requests": number,
        "frames": frames,
        "depth_cost": round(median_ratio(*walls), 4),
        "depth_cost_cpu": round(median_ratio(cpu["depth"], cpu["parallel"]), 4),
        "depth_cpu_ms_per_code": round(statistics.median(of_depth) / (CSM.layout.num_output_streams - 1), 4),
        "by_step_over_shared": round(median_ratio(by_step, of_depth), 4),
        "cpu_ms_per_step": {name: round(statistics.median(values), 4) for name, values in cpu.items()},
    }


if __name__ == "__main__":
    parsed = command_line(
        __doc__,
        "frames",
        requests=([1, 4, 16], "numbers of replies per step"),
        frames=(48, "frames per reply"),
        rounds=(5, "number of turns for each engine"),
    ).parse_args()
    cpu_kernels.install()
    with tempfile.TemporaryDirectory() as temporary:
        families = {
            "depth": (CSM, "benchmark_csm"),
            "parallel": (PARALLEL, "benchmark_parallel"),
            "by_step": (BY_STEP, "benchmark_by_step"),
        }
        engines = {arm: Arm(Path(temporary), *specs, max(parsed.requests)) for arm, specs in families.items()}
        for count in parsed.requests:
            append_result(parsed.out, "frames", measure(count, parsed.frames, parsed.rounds, engines))
    gc.unfreeze()  # or Triton's bindings report objects that the plugin froze as leaked
    gc.collect()


prepare_environment()

import torch  # noqa: E402

from benchmarks.decoder import Arm as DecoderArm  # noqa: E402
from benchmarks.engines import Watch  # noqa: E402
from benchmarks.loads import Load  # noqa: E402
from stretto.codecs.base import load_codec  # noqa: E402
from stretto.engine.worker.predictors import Draw, FramePredictor  # noqa: E402
from stretto.family.plugin import family_at, plugin_at  # noqa: E402

# DECODED: timed windows of each stream, after a warm-up window
MAX_MODEL_LEN = 1024
DECODED = 2
USER_WORDS = 24
THINKER_WORDS = 16
Write = Callable[[Load, int], Prompt]  # returns the prompt at an index of a load


class NamedPredictor:
    """Predictor whose call is a named method, so that a `Watch` can wrap it."""

    def __init__(self, predictor: FramePredictor):
        self._predictor = predictor
        self.reads_drawn = predictor.reads_drawn

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        return self.predict(hidden, token, draw)

    def predict(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Call the predictor."""
        return self._predictor(hidden, token, draw)


def writer(checkpoint: Path, model: SmallModel) -> Write:
    """Return the function that makes the prompts of a load.

    It calls the preprocessor. The Qwen3-Omni talker is not served, so it gets prompts of random thinker ids.
    """
    if plugin_at(checkpoint).open_template is None:
        talker = TalkerPrompts.at(checkpoint)
        random = np.random.default_rng(0)

        def write_talker(load: Load, index: int) -> Prompt:
            words = random.integers(0, PLAIN_IDS, USER_WORDS + THINKER_WORDS).tolist()
            prompt = talker.write(question(words[:USER_WORDS]), words[USER_WORDS:], "ethan")
            audio = replace(prompt.sampling.audio, min_rows=load.frames or 0, max_rows=load.frames or 0)
            return replace(prompt, sampling=replace(prompt.sampling, audio=audio, seed=index))

        return write_talker
    preprocessor = Preprocessor(checkpoint)
    lines = texts()

    def write(load: Load, index: int) -> Prompt:
        options = json.dumps({**model.options, **load.options(seed=index)})
        return preprocessor.prepare(RawRequest(text=next(lines), task=model.speak, options=options))

    return write


class PartsArm:
    """Engine for a checkpoint whose steps are timed by part."""

    def __init__(self, checkpoint: Path, model: SmallModel, max_requests: int):
        self._engine = SteppedEngine.from_args(checkpoint, engine_args(MAX_MODEL_LEN, max_requests))
        self._write = writer(checkpoint, model)
        self._watch = Watch()
        runner = self._engine.runner
        drawing = runner.sampler._draw
        drawing.frames = predictor = NamedPredictor(drawing.frames)
        self._watch.wrap(runner.model, "forward", "talker")
        self._watch.wrap(predictor, "predict", "predictor")

    def run(self, load: Load) -> dict[str, float]:
        """Return the milliseconds per frame of each part and of `all`, once all replies of `load` decode."""
        self._engine.add_prompts([self._write(load, index) for index in range(load.concurrency)])
        while self._engine.num_decoding() < load.concurrency:
            self._engine.step()
        self._watch.restart()
        begun_s = time.process_time()
        steps = self._engine.finish()
        all_s = time.process_time() - begun_s
        num_frames = load.concurrency * steps
        return {"all": 1e3 * all_s / num_frames, **self._watch.ms_per(num_frames)}


def measure_parts(checkpoint: Path, model: SmallModel, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For each number of replies, yield the run with the median total processor time."""
    family = family_at(checkpoint)
    codec = load_codec(family.codec, checkpoint, num_codebooks=family.layout.num_codebooks)
    decoder = DecoderArm(codec, DecoderConfig())
    arm = PartsArm(checkpoint, model, max(arguments.concurrency))
    for number in arguments.concurrency:
        load = Load(number, 1, arguments.frames, None)
        arm.run(load)
        runs = sorted((arm.run(load) for _ in range(arguments.rounds)), key=lambda run: run["all"])
        parts = runs[len(runs) // 2]
        parts["codec"] = decode_ms(decoder, number, family.steady_chunk_frames)
        yield {
            "family": arguments.family,
            "requests": number,
            "frames": arguments.frames,
            "frames_per_engine_cpu_s": round(1e3 / parts["all"], 1),
            "cpu_ms_per_frame": {name: round(ms, 4) for name, ms in parts.items() if name != "all"},
        }
    decoder.stop()


def decode_ms(decoder: DecoderArm, streams: int, frames: int) -> float:
    """Return the milliseconds of processor time per frame to decode chunks of `frames` frames of all streams."""
    decoder.cpu_s.clear()
    for _ in range(1 + DECODED):
        decoder.run(streams, frames)
    return 1e3 * statistics.median(decoder.cpu_s[1:]) / (streams * frames)
