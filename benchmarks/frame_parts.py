"""What the parts of a frame cost that a depth transformer completes: the talker, the predictor, the codec.

Part of `benchmarks.ensemble` (`--family`), behind the served loads: the engine and the decoder run in this process, one
after the other, on one thread. Milliseconds of processor time by frame, of steps in which every reply decodes: `talker`
is the backbone's forward pass, `predictor` the codes behind the first with heads and draws, `rest` all else of a step
(what it schedules, prepares and writes down, and the first code); `codec` is a steady chunk in the decoder.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.random_qwen3_omni import PLAIN_IDS, question
from benchmarks.checkpoints.small_models import SmallModel
from stretto.config import DecoderConfig, EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.families.qwen3_omni_talker.prompt import TalkerPrompts
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt

prepare_environment()

import torch  # noqa: E402

from benchmarks.decoder import Arm as DecoderArm  # noqa: E402
from benchmarks.layout import engine_args  # noqa: E402
from benchmarks.speech_load import Load, texts  # noqa: E402
from benchmarks.stepped_engine import SteppedEngine, Watch  # noqa: E402
from stretto.codecs.registry import load_codec  # noqa: E402
from stretto.engine.launch import vllm_config  # noqa: E402
from stretto.engine.protocol import sampling_params  # noqa: E402
from stretto.engine.worker.predictors import Draw, FramePredictor  # noqa: E402
from stretto.families.registry import family_at  # noqa: E402

MAX_MODEL_LEN, DECODED = 1024, 2  # decoded: windows of each stream, after one that warms up
HEARD_WORDS, SAID_WORDS = 24, 16  # of a user, and of a thinker
Write = Callable[[Load, int], Prompt]  # for a load the prompt of a number


class NamedPredictor:
    """A predictor behind a method with a name, at which a watch can stand."""

    def __init__(self, predictor: FramePredictor):
        self._predictor, self.reads_drawn = predictor, predictor.reads_drawn

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        return self.predict(hidden, token, draw)

    def predict(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """As the predictor does."""
        return self._predictor(hidden, token, draw)


def writer(checkpoint: Path, model: SmallModel) -> Write:
    """What writes the prompts of a load: the preprocessor, or of the talker, which no server has, what makes them of a
    thinker's ids, here random ones."""
    if family_at(checkpoint).not_served:
        talker, random = TalkerPrompts.at(checkpoint), np.random.default_rng(0)

        def write_talker(load: Load, index: int) -> Prompt:
            words = random.integers(0, PLAIN_IDS, HEARD_WORDS + SAID_WORDS).tolist()
            prompt = talker.write(question(words[:HEARD_WORDS]), words[HEARD_WORDS:], "ethan")
            audio = replace(prompt.sampling.audio, min_rows=load.frames or 0, max_rows=load.frames or 0)
            return replace(prompt, sampling=replace(prompt.sampling, audio=audio, seed=index))

        return write_talker
    preprocessor, lines = Preprocessor(checkpoint), texts()

    def write(load: Load, index: int) -> Prompt:
        options = json.dumps({**model.options, **load.options(seed=index)})
        return preprocessor.prepare(RawRequest(text=next(lines), task=model.speak, options=options))

    return write


class PartsArm:
    """An engine over a checkpoint, with a watch over the parts of its steps."""

    def __init__(self, checkpoint: Path, model: SmallModel, max_requests: int):
        self._engine = SteppedEngine(vllm_config(EngineConfig(checkpoint, engine_args(MAX_MODEL_LEN, max_requests))))
        self._write = writer(checkpoint, model)
        self._watch, runner = Watch(), self._engine.runner
        drawing = runner.sampler._draw
        drawing._frames = predictor = NamedPredictor(drawing._frames)
        self._watch.wrap(runner.model, "forward", "talker")
        self._watch.wrap(predictor, "predict", "predictor")

    def run(self, load: Load) -> dict[str, float]:
        """Milliseconds of each part by frame, of the steps in which all replies of `load` decode, and of `all`."""
        rules = self._engine.scheduler.table.rules
        prompts = [self._write(load, index) for index in range(load.concurrency)]
        params = [sampling_params(prompt, rules) for prompt in prompts]
        self._engine.add([prompt.rows[:, 0].tolist() for prompt in prompts], params)
        while self._engine.num_decoding() < load.concurrency:
            self._engine.step()
        self._watch.restart()
        steps, begun_s = 0, time.process_time()
        while self._engine.scheduler.has_requests():
            self._engine.step()
            steps += 1
        all_s = time.process_time() - begun_s
        num_frames = load.concurrency * steps
        return {"all": 1e3 * all_s / num_frames, **self._watch.ms_per(num_frames)}


def measure_parts(checkpoint: Path, model: SmallModel, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record for every number of replies at once: the median run, by all of its processor time."""
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
    """Milliseconds of processor time by frame of chunks of `frames` frames, as many at once as there are streams."""
    decoder.cpu_s.clear()
    for _ in range(1 + DECODED):
        decoder.run(streams, frames)
    return 1e3 * statistics.median(decoder.cpu_s[1:]) / (streams * frames)
