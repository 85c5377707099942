"""Load of a soak test with live sessions: a small random Moshi, which answers frames of speech while they arrive.

Sessions send a recording in parts of different sizes and at different paces. Some of them can be resumed, so that a
reset connection must not change their answer. Others send the same recordings as a whole.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.load import Ask, GrpcAsk
from plugins.kyutai.lab.random_moshi import write_release
from stretto.convert.command import main as convert
from stretto.convert.make_repository import make
from stretto_client import SpeechClient
from stretto_client.long_speech import Speech

RATE = 24_000
FRAME = 1920
RESUME_S = 60.0
MAX_FRAMES = 60  # of a recording, of 80 ms each
KINDS = {"talk": 8.0, "resumed talk": 4.0, "recording": 3.0, "malformed": 1.0}  # relative frequencies


def audio(number: int, num_frames: int) -> np.ndarray:
    """Return recording `number`: noise whose loudness changes, float32 [n]."""
    random = np.random.default_rng([1, number])
    levels = np.repeat(random.uniform(0, 0.3, num_frames).astype(np.float32), FRAME)
    return random.standard_normal(FRAME * num_frames, np.float32).clip(-3, 3) * levels


def write_repository(folder: Path) -> Path:
    """Write a model repository with a small random Moshi into an empty folder and return its path."""
    release = write_release(folder / "release")
    checkpoint = folder / "checkpoint"
    if convert(["moshi", "--model", str(release), "--out", str(checkpoint)]):
        raise RuntimeError(f"{release}: not converted")
    make(checkpoint, folder / "repository", {"max_num_seqs": 64, "max_model_len": 256})
    return folder / "repository"


def make_asks(seed: int, sessions: int = 12, recordings: int = 4) -> list[Ask]:
    """Return live sessions, recordings and malformed requests. Equal seeds give equal requests."""
    draw = random.Random(seed)
    asks: list[Ask] = []
    for number in range(sessions):
        request_type, options = ("resumed talk", {"resume_s": RESUME_S}) if number % 3 == 2 else ("talk", {})
        asks.append(_talking(f"{request_type} {number}", request_type, number, draw, options))
    asks += [_recording(number, draw) for number in range(recordings)]
    return [*asks, GrpcAsk("malformed 0", "malformed", lambda client: client.talk(pieces(0, 4, 1, 0.0), 4000))]


def _talking(name: str, request_type: str, number: int, draw: random.Random, options: dict[str, Any]) -> Ask:
    num_frames = draw.randrange(5, MAX_FRAMES)
    seed = draw.randrange(1 << 30)
    size = draw.choice((333, FRAME, 5000))
    pause_s = draw.choice((0.0, 0.02, 0.08))

    def send(client: SpeechClient) -> Speech:
        return client.talk(pieces(number, num_frames, size, pause_s), RATE, seed=seed, **options)

    return GrpcAsk(name, request_type, send, resumes="resume_s" in options)


def _recording(number: int, draw: random.Random) -> Ask:
    pcm = audio(number, draw.randrange(5, MAX_FRAMES))
    seed = draw.randrange(1 << 30)
    options: dict[str, Any] = {"task": "duplex", "seed": seed}
    return GrpcAsk(f"recording {number}", "recording", lambda client: client.transcribe((pcm, RATE), **options))


async def pieces(number: int, num_frames: int, size: int, pause_s: float) -> AsyncIterator[np.ndarray]:
    """Yield recording `number` in parts of `size` samples, `pause_s` seconds apart."""
    pcm = audio(number, num_frames)
    for at in range(0, len(pcm), size):
        yield pcm[at : at + size]
        await asyncio.sleep(pause_s)
