"""Check and measure the complete ensemble in a Triton server on a host with a GPU (the second call).

    python -m benchmarks.gpu.served --out DIR             # on the GPU
    python -m benchmarks.gpu.served --out DIR --dry-run   # on the CPU, few short requests

The bundled model is served from a model repository for GPU 0 or for the CPU; on a GPU, the decoder runs there too. The
job checks that the server speaks, and that samples through a ring in GPU or system memory equal samples over gRPC. It
measures `triton_tax` at 1 and 16 streams, compared with a bare engine in this process. A second job serves a model of
the shape of Qwen3-TTS 1.7B, with random weights and few text ids, as `make-repository --gpu` writes it. It measures its
hops, replies of 4.4 and 8 seconds in closed loops, and requests with streamed text at random times
(`benchmarks.fair_load`). The host needs nvidia-pytriton, numpy below 2, Python's shared library and the bundled model's
weights. Output files and table are as for `benchmarks.gpu`.
"""

import argparse
import asyncio
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fair_load import FairLoad, measure_fair
from benchmarks.gpu.__main__ import main, parse
from benchmarks.gpu.jobs import SERVED, Setup, failure
from benchmarks.gpu.models import GRAPHS, QWEN3_TTS_1B7
from benchmarks.harness import CHECKPOINT
from benchmarks.harness import serving as serving_at
from benchmarks.hops import trace, tracing
from lab.releases.random_qwen3_codec import write_qwen3_codec
from lab.releases.small_models import SMALL_MODELS, write_checkpoint
from stretto.config import EngineConfig
from stretto.convert.make_repository import CHECKPOINT as LINK
from stretto.convert.make_repository import DECODER, ENGINE, Placement, make
from stretto.convert.profiles import BALANCED
from stretto.families.qwen3_tts.family import SILENT_FRAMES, Qwen3TtsVocabulary
from stretto.family.plugin import VOCABULARY
from stretto.preprocessing.request import Preprocessor
from stretto.weights.backbones import config_of
from stretto_client import SpeechClient
from stretto_contract.schema import Memory

TEXT = "The train to Oslo leaves in ten minutes."
SEED = 1
GUIDANCE = 1.5
ALIKE = 1e-4  # chunk boundaries depend on timing, and each window is rounded separately
SHARE = {"gpu_memory_utilization": 0.3}  # two engines and the decoder share one GPU
SHAPE = "qwen3-tts-small"  # model whose prompts and tokenizer the model of published shape has
# Usual streams of closed loops, with replies of 55 frames, as a sentence of speech benchmarks, or 100; requests per
# second of open loops, and the seconds before them that are not measured.
STREAMS = (1, 16, 64)
FRAMES = (55, 100)
RATES = (1.0, 20.0, 10.0)
WARM_UP_S = 30.0
OPEN_S = 15.0
LEAST_REQUESTS = 16
CLIENT_RATE = 10.0  # requests per second of a client process, whose event loop also receives their audio


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Start a server and yield a result line for each check."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        gpu = None if setup.is_small else 0
        make(CHECKPOINT.resolve(), repository, {} if gpu is None else SHARE, None if gpu is None else Placement(gpu))
        with serving_at(repository) as address, asyncio.Runner() as runner:
            lines = _ask(setup, repository, address)
            while (line := runner.run(anext(lines, None))) is not None:
                yield line


async def _ask(setup: Setup, repository: Path, address: str) -> AsyncIterator[dict[str, Any]]:
    instances = "KIND_CPU" if setup.is_small else "KIND_GPU"
    config = (repository / DECODER / "config.pbtxt").read_text()
    plain = await speak(SpeechClient(address))
    yield {"part": "speaks", "samples": len(plain), "ok": instances in config and float(np.abs(plain).max()) > 0.01}
    memories: tuple[Memory, ...] = ("system",) if setup.is_small else ("system", "cuda")
    for memory in memories:
        try:
            shared = await speak(SpeechClient(address, shared_memory=memory))
            difference = float(np.abs(shared - plain).max()) if len(shared) == len(plain) else None
            is_same = difference is not None and difference <= ALIKE
            figures = {"samples": len(shared), "max_difference": difference, "ok": is_same}
        except Exception as error:
            figures = failure(error)
        yield {"part": "ring", "memory": memory, **figures}
    async for figures in tax(setup, repository, address):
        yield {"part": "triton_tax", **figures}


@dataclass(frozen=True)
class ShapeLoads:
    """Loads of a server, with one result line for each.

    Attributes:
        rates: Requests per second of open loops, whose replies last as long as read sentences.
        warm_up_s: Seconds before each open loop, at its rate.
    """

    streams: Sequence[int] = STREAMS
    frames: Sequence[int] = FRAMES
    rates: Sequence[float] = RATES
    warm_up_s: float = WARM_UP_S


def run_shape(
    setup: Setup,
    convolutions: str,
    mps_share: int | None = None,
    mode: str | None = None,
    serving: str = BALANCED,
    **loads: Any,
) -> Iterator[dict[str, Any]]:
    """Serve Qwen3-TTS 1.7B's shape (a dry run: its small version); yield a line for each hop, then for each load.

    Args:
        convolutions: Convolutions of the decoder on a GPU, one of `DecoderConfig.CONVOLUTIONS`.
        mps_share: Multiprocessors that the decoder may use under NVIDIA's MPS, in percent; None without MPS.
        mode: Graphs of the engine, a key of `GRAPHS`; None for those of the profile.
        serving: Profile of `make-repository`.
    """
    with tempfile.TemporaryDirectory() as folder, tracing() as hops:
        checkpoint = Path(folder) / "checkpoint"
        repository = Path(folder) / "repository"
        write_checkpoint(SMALL_MODELS[SHAPE].family, checkpoint)
        if setup.is_small:
            make(checkpoint, repository, {}, serving=serving)
        else:
            enlarge(checkpoint)
            share = 100 if mps_share is None else mps_share
            placement = Placement(0, None, convolutions, mps_share is not None, None, share)
            engine_args = {"load_format": "dummy"} | ({} if mode is None else GRAPHS[mode])
            make(checkpoint, repository, engine_args, placement, serving=serving)
        begun = time.perf_counter()
        with serving_at(repository) as address, asyncio.Runner() as runner:
            about = {"convolutions": convolutions, "mps_share": mps_share, "mode": mode, "profile": serving}
            yield {**about, "part": "start", "start_s": round(time.perf_counter() - begun, 1)}
            lines = _load(setup, address, hops, ShapeLoads(**loads))
            while (line := runner.run(anext(lines, None))) is not None:
                yield about | line


def enlarge(checkpoint: Path) -> None:
    """Give a small Qwen3-TTS checkpoint the published sizes. vLLM creates weights for them (`load_format` "dummy")."""
    path = checkpoint / "config.json"
    record = json.loads(path.read_text())
    published = {"depth": Qwen3TtsVocabulary().to_record()["depth"], "silent_frames": SILENT_FRAMES}
    vocabulary = record[VOCABULARY] | published
    record |= config_of(QWEN3_TTS_1B7, record["vocab_size"], "bfloat16")
    path.write_text(json.dumps(record | {"tie_word_embeddings": True, VOCABULARY: vocabulary}))
    shutil.rmtree(checkpoint / "codec")
    write_qwen3_codec(checkpoint / "codec", "wide")


async def _load(setup: Setup, address: str, hops: Path, loads: ShapeLoads) -> AsyncIterator[dict[str, Any]]:
    from benchmarks.ensemble import FamilyLoad, speaker, speech_inputs

    model = SMALL_MODELS[SHAPE]
    streamed = replace(model, options={**model.options, "text_mode": "streaming"})
    asked = argparse.Namespace(family=SHAPE, guidance=None, rounds=2, requests=2)
    open_s = OPEN_S
    if setup.is_small:
        asked.rounds = 1
        asked.requests = 1
        loads = ShapeLoads((1, 2)[: len(loads.streams)], (8,), (0.5,), 2.0)
        open_s = 4.0
    async with SpeechClient(address) as client:
        inputs = speech_inputs(model)
        forced = {"audio": {"min_rows": loads.frames[0], "max_rows": loads.frames[0]}, "seed": SEED}
        for row in await trace(lambda text: client.send(inputs(text, forced)), hops, 2 if setup.is_small else 20):
            yield {"part": "hop", **row}
        for asked.frames in loads.frames:
            load = FamilyLoad(model, speaker(client, model), asked)
            for number in loads.streams:
                yield {"part": "closed", **await load.measure(number)}
    for rate in loads.rates:
        num_requests = math.ceil(rate * open_s) if setup.is_small else max(LEAST_REQUESTS, math.ceil(rate * open_s))
        requests = FairLoad(rate, num_requests, loads.warm_up_s)
        num_clients = 2 if setup.is_small else math.ceil(rate / CLIENT_RATE)  # a repetition would take too long
        yield {
            "part": "open",
            **await measure_fair(address, partial(speaker, model=streamed), requests, num_clients, 1),
        }


async def speak(client: SpeechClient) -> np.ndarray:
    async with client:
        parts = [event.pcm async for event in client.speak(TEXT, seed=SEED) if event.pcm is not None]
    return np.concatenate([samples for samples in parts if samples.size])


async def tax(setup: Setup, repository: Path, address: str) -> AsyncIterator[dict[str, Any]]:
    """Yield `triton_tax` and the other figures of `benchmarks.ensemble` for each number of streams."""
    from benchmarks.ensemble import measure, through_engine, through_triton
    from stretto.engine.llm import SpeechLLM  # vllm reads the environment when it is imported

    preprocessor = Preprocessor(repository / LINK)
    engine = await SpeechLLM.start(EngineConfig.from_file(repository / ENGINE, repository / LINK))
    asked = argparse.Namespace(guidance=GUIDANCE, requests=4, frames=75, rounds=3)
    if setup.is_small:
        asked = argparse.Namespace(guidance=GUIDANCE, requests=1, frames=8, rounds=1)
    try:
        async with SpeechClient(address) as client:
            alone = through_engine(engine, preprocessor, preprocessor.codec.spec.frame_rate)
            for concurrency in (1, 2) if setup.is_small else (1, 16):
                yield await measure(concurrency, asked, through_triton(client), alone)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    sys.exit(main(parse(jobs=SERVED, description=__doc__), SERVED))
