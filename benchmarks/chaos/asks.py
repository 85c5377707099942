"""The requests of a soak: every task of the bundled model, each with its seed, so that each has one right answer.

Most go to the server itself. Some have their samples through memory that both see, and some go through the gateway.
"""

import io
import json
import random
from functools import cache
from typing import Any

import soundfile

from benchmarks.chaos.doors import Ask, GatewayAsk, GrpcAsk
from benchmarks.large_audio import FILES
from benchmarks.speech_load import NOISE_RATE, noise, texts
from stretto_client.speech_stream import strings

FIXED_GUIDANCE: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.5},
    {"guidance_scale": 3.0},
    {"guidance": {"scale": 2.0, "policy": "until_s", "until_s": 1.0}},
)  # not `adaptive`, whose codes follow the load
MALFORMED: tuple[dict[str, str | bytes], ...] = (
    {},
    {"text": "hello", "task": "sing"},
    {"text": "hello", "options": "{"},
    {"text": "hello", "options": json.dumps({"guidance_scale": "loud"})},
    {"text": "hello", "options": json.dumps({"audio": {"max_rows": 10**9}})},
    {"text": b"\xff\xfe", "task": "tts"},
    {"text": "", "task": "tts"},
    {"audio": b"RIFF\0\0\0\0WAVE", "task": "asr"},
    {"text": "hello " * 4000, "task": "tts"},
)
UPLOADS = ("prepared", "long", "corrupt")


def make_asks(seed: int, speak: int = 24, transcribe: int = 8, through_gateway: int = 4) -> list[Ask]:
    """So many of each task, large uploads and malformed requests; the same for the same seed."""
    draw, lines = random.Random(seed), texts()
    asks: list[Ask] = [_speaking(number, next(lines), draw) for number in range(speak)]
    asks += [_transcribing(number, draw) for number in range(transcribe)]
    asks += [_asking_the_gateway(number, next(lines), draw) for number in range(through_gateway)]
    asks += [_uploading(kind) for kind in UPLOADS]
    return asks + [_malformed(number, inputs) for number, inputs in enumerate(MALFORMED)]


def _speaking(number: int, line: str, draw: random.Random) -> Ask:
    text, options = _beginning(line, draw), _options(draw)
    if draw.random() < 0.3:
        options["encoding"] = "pcm_s16le"
    if draw.random() < 0.2:
        options["sample_rate"] = draw.choice((8_000, 24_000, 48_000))
    if draw.random() < 0.3:
        options["voice"] = draw.choice(("slt", "rms"))
    if draw.random() < 0.2:
        options["chunking"] = {"first_frames": draw.randrange(1, 9), "playout_s": draw.choice((0.0, 0.2))}
    is_near = draw.random() < 0.2
    return GrpcAsk(f"speak {number}", "speak", lambda client: client.speak(text, **options), is_near)


def _asking_the_gateway(number: int, line: str, draw: random.Random) -> Ask:
    body = {"model": "tts-1", "voice": "alloy", "input": _beginning(line, draw), "response_format": "pcm"}
    return GatewayAsk(f"gateway {number}", "gateway", body | _options(draw))


def _beginning(line: str, draw: random.Random) -> str:
    words = line.split()
    return " ".join(words[: draw.randrange(3, len(words) + 1)])


def _options(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": draw.randrange(1 << 40), "max_audio_s": draw.uniform(0.6, 6.0)}
    return options | draw.choice(FIXED_GUIDANCE)


def _transcribing(number: int, draw: random.Random) -> Ask:
    seed = draw.randrange(1 << 30)
    pcm = noise(draw.uniform(0.25, 6.0), seed)
    if number % 2:
        file = io.BytesIO()
        soundfile.write(file, pcm, NOISE_RATE, format="FLAC" if number % 4 == 1 else "WAV")
        data = file.getvalue()
        return GrpcAsk(f"transcribe {number}", "transcribe", lambda client: client.transcribe(data, seed=seed))
    return GrpcAsk(f"transcribe {number}", "transcribe", lambda client: client.transcribe((pcm, NOISE_RATE), seed=seed))


def _uploading(kind: str) -> Ask:
    options: dict[str, Any] = {"seed": 1, "text": {"max_rows": 1}}
    return GrpcAsk(f"upload {kind}", "upload", lambda client: client.transcribe(large_file(kind), **options))


@cache
def large_file(kind: str) -> bytes:
    """A file of 19 MB, made when it is first sent."""
    return FILES[kind]()


def _malformed(number: int, inputs: dict[str, str | bytes]) -> Ask:
    return GrpcAsk(f"malformed {number}", "malformed", lambda client: client.send(strings(**inputs)))
