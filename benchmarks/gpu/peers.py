"""Job that measures other programs for Qwen3-TTS on the same card: one stream, random weights of the published sizes.

`qwen_tts` is the authors' package, which returns only whole replies: its first audio is a reply of two frames.
`faster_qwen3_tts` replays CUDA graphs, and its first audio is the first chunk of two frames. Both decode in the dtype
of the model, bfloat16. A bundle contains the packages (`contents.PEERS`).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu.jobs import Setup
from lab.releases import random_qwen3_tts
from lab.releases.random_qwen3_codec import write_qwen3_codec

TEXT = "Go on, 7x."
VOICE = {"speaker": "Ryan", "language": "English"}
FIRST_FRAMES = 2
FRAMES = 50
TURNS = 5
FRAME_SAMPLES = 1920  # of 80 ms at 24 kHz
SPREAD = 0.02  # standard deviation of random weights
# A number of frames -> the samples of each chunk.
Speak = Callable[[int], Iterator[np.ndarray]]


def load_qwen_tts(release: Path, setup: Setup) -> Speak:
    model = import_module("qwen_tts").Qwen3TTSModel.from_pretrained(
        str(release), device_map=setup.device, dtype=torch.float32 if setup.is_small else torch.bfloat16
    )

    def speak(frames: int) -> Iterator[np.ndarray]:
        # The last token has no frame.
        waves, _ = model.generate_custom_voice(text=TEXT, max_new_tokens=frames + 1, **VOICE)
        yield from waves

    return speak


def load_faster(release: Path, setup: Setup) -> Speak:
    """Load a release with faster-qwen3-tts, and capture its graphs."""
    model = import_module("faster_qwen3_tts").FasterQwen3TTS.from_pretrained(str(release), device=setup.device)

    def speak(frames: int) -> Iterator[np.ndarray]:
        lengths = {"max_new_tokens": frames, "min_new_tokens": frames, "chunk_size": FIRST_FRAMES}
        for chunk, _, _ in model.generate_custom_voice_streaming(text=TEXT, **lengths, **VOICE):
            yield chunk

    return speak


PEERS: dict[str, tuple[str, Callable[[Path, Setup], Speak]]] = {  # with the package whose version is recorded
    "qwen_tts": ("qwen-tts-hf", load_qwen_tts),
    "faster_qwen3_tts": ("faster-qwen3-tts", load_faster),
}


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a line for each program. A program that fails does not end the job."""
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(Path(folder) / "release", setup)
        for name in PEERS:
            try:
                yield {"peer": name, **measure(name, release, setup)}
            except Exception as error:
                yield {"peer": name, "error": f"{type(error).__name__}: {error}"[:500], "ok": False}


def measure(name: str, release: Path, setup: Setup) -> dict[str, Any]:
    """Return the milliseconds of a frame and until the first audio of two frames, medians over turns."""
    package, load = PEERS[name]
    begun = time.perf_counter()
    speak = load(release, setup)
    timed(speak, FIRST_FRAMES)
    start_s = time.perf_counter() - begun
    turns = 1 if setup.is_small else TURNS
    first_s = statistics.median(timed(speak, FIRST_FRAMES)[0] for _ in range(turns))
    frame_s = []
    for _ in range(turns):
        _, whole_s, frames = timed(speak, FRAMES)
        frame_s.append(whole_s / frames)
    try:
        released = version(package)
    except PackageNotFoundError:
        released = "unknown"
    return {
        "version": released,
        "start_s": round(start_s, 2),
        "frame_ms": round(1e3 * statistics.median(frame_s), 3),
        "first_audio_ms": round(1e3 * first_s, 2),
        "frames": frames,
    }


def timed(speak: Speak, frames: int) -> tuple[float, float, float]:
    """Speak once; return the seconds until the first chunk and until the end, and the number of frames."""
    begun = time.perf_counter()
    first_s = 0.0
    samples = 0
    for chunk in speak(frames):
        first_s = first_s or time.perf_counter() - begun
        samples += len(chunk)
    if not samples:
        raise ValueError(f"expected the audio of {frames} frames, got none")
    return first_s, time.perf_counter() - begun, samples / FRAME_SAMPLES


def write_release(folder: Path, setup: Setup) -> Path:
    """Write a release of the 1.7B model with its codec, and weights that are created on the device."""
    config = random_qwen3_tts.small_config()
    if not setup.is_small:
        config = random_qwen3_tts.published_config()
        config["talker_config"] |= {"hidden_size": 2048, "intermediate_size": 6144}

    def drawn(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
        random = torch.Generator(setup.device).manual_seed(seed)
        weights = {}
        for name, shape in random_qwen3_tts.shapes(config).items():
            values = torch.randn(shape, generator=random, device=setup.device) * SPREAD
            weights[name] = (values + ("norm" in name)).cpu().numpy()
        return weights

    with patch.object(random_qwen3_tts, "tensors", drawn):
        random_qwen3_tts.write_release(folder, config, is_half=not setup.is_small)
    write_qwen3_codec(folder / "speech_tokenizer", "small" if setup.is_small else "wide")
    return folder
