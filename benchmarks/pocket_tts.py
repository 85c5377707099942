"""Pocket TTS: frames per second of processor time of the complete server and, alternately, of the authors' package.

    python -m benchmarks.pocket_tts --package FOLDER --concurrency 1 4 16 --rounds 3

A release with random weights at published dimensions (`random_pocket.py`) is written, converted and served. FOLDER has
pocket-tts 4.0.1 with its requirements, as installed by `scripts/nightly.sh`. Replies have a fixed number of frames of
80 ms; prompts have the same text and voice. In each round the package speaks first, with one thread each for language
model and codec as it does by default, and then streams speak at the same time through the server.

`frames_per_cpu_s`: frames over the processor time of all processes of the server, without this one, or of the package;
`ratio`: median of the server's over the package's in the same round. `first_audio_s`: median time from request to first
samples. `cpu_ms_per_frame`: of each process. One line of JSON for each number of streams.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checkpoints.random_pocket import VOICES, write_release
from benchmarks.harness import append_result, command_line, cpu_s, median_ratio, served_processes, serving
from stretto.convert.command import main as convert
from stretto.convert.make_repository import main as make_repository
from stretto_client import SpeechClient

TEXT = "The birch canoe slid on the smooth planks and the garden door is open at last."
VOICE = next(iter(VOICES))
FRAME = 1920  # samples


def write_theirs(release: Path) -> Path:
    """Write the YAML file that the authors' package reads, with the paths of a release's files."""
    record = yaml.safe_load((release / "config.yaml").read_text())
    record["weights_path"] = str(release / "model.safetensors")
    table = record["flow_lm"]["lookup_table"]
    table["tokenizer_path"] = str(release / table["tokenizer_path"])
    path = release.parent / "theirs.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def speak_with_package(config: Path, voice: Path, frames: int) -> float:
    """Return the processor time in seconds of one reply by the authors' package, which must be importable."""
    from pocket_tts.models.tts_model import TTSModel

    model = TTSModel.load_model(config=config, eos_threshold=1e9)
    state = model.get_state_for_audio_prompt(voice)
    taken = 0.0
    for length in (10, frames):  # the first one warms up
        model._estimate_max_gen_len = lambda tokens, length=length: length
        begun = time.process_time()
        samples = model.generate_audio(state, TEXT, max_tokens=1000)
        taken = time.process_time() - begun
        assert samples.shape[-1] == length * FRAME, samples.shape
    return taken


def package_cpu_s(package: Path, config: Path, voice: Path, frames: int) -> float:
    """Return the result of `speak_with_package` in a separate process."""
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.pocket_tts", "--package", str(package), "--frames", str(frames)]
    command += ["--theirs", str(config), "--voice", str(voice)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


async def speak(client: SpeechClient, seed: int, frames: int) -> float:
    """Generate one reply of `frames` frames; return the seconds until its first samples."""
    sent, first, number = time.perf_counter(), 0.0, 0
    async for event in client.speak(TEXT, voice=VOICE, seed=seed, audio={"min_rows": frames, "max_rows": frames}):
        if event.pcm is not None:
            first = first or time.perf_counter() - sent
            number += len(event.pcm)
    assert number == frames * FRAME, f"expected {frames} frames, got {number} samples"
    return first


async def measure(address: str, release: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of each number of streams."""
    pids, frames = served_processes(), arguments.frames
    config, voice = write_theirs(release), release / "embeddings" / f"{VOICE}.safetensors"
    theirs, ours = list[float](), defaultdict[int, list[float]](list)
    first, by_process = defaultdict[int, list[float]](list), defaultdict[int, dict[str, float]](dict)
    async with SpeechClient(address) as client:
        await asyncio.gather(*(speak(client, seed, 12) for seed in range(max(arguments.concurrency))))
        for number in range(arguments.rounds):
            theirs.append(frames / package_cpu_s(arguments.package, config, voice, frames))
            for streams in arguments.concurrency:
                before = cpu_s(pids)
                seeds = range(1000 * number, 1000 * number + streams)
                first[streams] += await asyncio.gather(*(speak(client, seed, frames) for seed in seeds))
                used = {name: seconds - before[name] for name, seconds in cpu_s(pids).items()}
                ours[streams].append(streams * frames / sum(used.values()))
                for name, seconds in used.items():
                    by_process[streams][name] = by_process[streams].get(name, 0.0) + seconds
    return [
        {
            "streams": streams,
            "frames": frames,
            "rounds": arguments.rounds,
            "frames_per_cpu_s": round(statistics.median(ours[streams]), 1),
            "package_frames_per_cpu_s": round(statistics.median(theirs), 1),
            "ratio": round(median_ratio(ours[streams], theirs), 2),
            "first_audio_s": round(statistics.median(first[streams]), 3),
            "cpu_ms_per_frame": {
                name: round(1000 * seconds / (streams * frames * arguments.rounds), 2)
                for name, seconds in by_process[streams].items()
            },
        }
        for streams in arguments.concurrency
    ]


def main(arguments: argparse.Namespace) -> None:
    """Write and serve a release, measure, and append the result lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        release = write_release(folder / "release", arguments.kind)
        assert convert(["pocket-tts", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
        assert make_repository(["--checkpoint", str(folder / "checkpoint"), "--out", str(folder / "served")]) == 0
        with serving(folder / "served") as address:
            for figures in asyncio.run(measure(address, release, arguments)):
                append_result(arguments.out, "pocket_tts", figures)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "pocket_tts",
        package=(Path, "folder with pocket-tts and its requirements"),
        concurrency=([1, 4, 16], "numbers of streams"),
        frames=(100, "frames of a reply"),
        rounds=(3, "turns of each arm"),
        kind=("published", "kind of release"),
        theirs=(Path, "used by the benchmark itself: run the package with this YAML file"),
        voice=(Path, "used by the benchmark itself: the voice"),
    )
    arguments = parser.parse_args()
    if arguments.package is None:
        parser.error("--package: expected the folder of the authors' package")
    return arguments


if __name__ == "__main__":
    given = parse()
    if given.theirs:
        print(json.dumps(speak_with_package(given.theirs, given.voice, given.frames)))
    else:
        main(given)
