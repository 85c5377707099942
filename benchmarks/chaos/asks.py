"""The requests of a soak: every task of the bundled model, each with its seed, so that each has one right answer."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soundfile

from benchmarks.large_audio import FILES
from benchmarks.soak_load import MALFORMED
from benchmarks.speech_load import texts
from stretto_client import SpeechClient
from stretto_client.inputs import strings
from stretto_client.long_speech import Speech

RATE = 16_000
FIXED_GUIDANCE: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.5},
    {"guidance_scale": 3.0},
    {"guidance": {"scale": 2.0, "policy": "until_s", "until_s": 1.0}},
)  # not `adaptive`, whose codes follow the load
UPLOADS = ("prepared", "long", "corrupt")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that may be sent again and again. kind: how the report counts it."""

    name: str
    kind: str
    send: Callable[[SpeechClient], Speech]


def make_asks(seed: int, speak: int = 24, transcribe: int = 8) -> list[Ask]:
    """So many of each task, large uploads and malformed requests; the same for the same seed."""
    draw, lines = random.Random(seed), texts()
    asks = [_speaking(number, next(lines), draw) for number in range(speak)]
    asks += [_transcribing(number, draw) for number in range(transcribe)]
    asks += [_uploading(kind) for kind in UPLOADS]
    return asks + [_malformed(number, inputs) for number, inputs in enumerate(MALFORMED)]


def _speaking(number: int, line: str, draw: random.Random) -> Ask:
    words = line.split()
    text = " ".join(words[: draw.randrange(3, len(words) + 1)])
    options: dict[str, Any] = {"seed": draw.randrange(1 << 40), "max_audio_s": draw.uniform(0.6, 6.0)}
    options |= draw.choice(FIXED_GUIDANCE)
    if draw.random() < 0.3:
        options["encoding"] = "pcm_s16le"
    if draw.random() < 0.2:
        options["sample_rate"] = draw.choice((8_000, 24_000, 48_000))
    if draw.random() < 0.3:
        options["voice"] = draw.choice(("slt", "rms"))
    return Ask(f"speak {number}", "speak", lambda client: client.speak(text, **options))


def _transcribing(number: int, draw: random.Random) -> Ask:
    seed = draw.randrange(1 << 30)
    pcm = noise(seed, draw.uniform(0.25, 6.0))
    if number % 2:
        file = io.BytesIO()
        soundfile.write(file, pcm, RATE, format="FLAC" if number % 4 == 1 else "WAV")
        data = file.getvalue()
        return Ask(f"transcribe {number}", "transcribe", lambda client: client.transcribe(data, seed=seed))
    return Ask(f"transcribe {number}", "transcribe", lambda client: client.transcribe((pcm, RATE), seed=seed))


def _uploading(kind: str) -> Ask:
    options: dict[str, Any] = {"seed": 1, "text": {"max_rows": 1}}
    return Ask(f"upload {kind}", "upload", lambda client: client.transcribe(large_file(kind), **options))


@cache
def large_file(kind: str) -> bytes:
    """A file of 19 MB, made when it is first sent."""
    return FILES[kind]()


def _malformed(number: int, inputs: dict[str, str | bytes]) -> Ask:
    return Ask(f"malformed {number}", "malformed", lambda client: client.send(strings(**inputs)))


def noise(seed: int, seconds: float) -> np.ndarray:
    """Quiet noise at `RATE` [n], float32."""
    return (0.05 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)
