"""Frames per second of processor time of the complete server and, in turns, of a family's authors' own code.

    python -m benchmarks.authors --family pocket_tts --package FOLDER --concurrency 1 4 16 --rounds 3

A release with random weights is written, converted and served; its dimensions are in `sizes` of the result. FOLDER has
the authors' package, installed by `pip install --target FOLDER --no-deps` as in `scripts/nightly.sh`, and runs with
the libraries of this environment. Replies have a fixed number of frames, and prompts the same text and voice. In each
round the authors' code speaks first, one reply in a process of its own, and then streams speak at the same time
through the server. Products of both sides use one thread (`OMP_NUM_THREADS`), as by default here. Each reply must have
the expected number of samples.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checkpoints import random_pocket
from benchmarks.harness import append_result, command_line, cpu_s, median_ratio, served_processes, serving
from stretto.convert.command import main as convert
from stretto.convert.make_repository import main as make_repository
from stretto_client import SpeechClient

TEXT = "The birch canoe slid on the smooth planks and the garden door is open at last."
WARM_UP = 12  # frames of the replies before the measured ones
Speak = Callable[[int], Iterator[int]]  # a number of frames -> number of samples of each chunk


@dataclass(frozen=True)
class Contender:
    """A family with its authors' code.

    Attributes:
        write: Writes a release to a folder; returns the converter's arguments, except `--out`.
        load: Loads the release in a folder with the authors' code; returns a function that speaks.
        samples: Samples of a frame.
        voice: Name of a voice.
        packages: Packages of the authors, whose versions are recorded.
        sizes: Dimensions and precision of the release, in words.
    """

    write: Callable[[Path], list[str]]
    load: Callable[[Path], Speak]
    samples: int
    voice: str
    packages: tuple[str, ...]
    sizes: str


# ----- Pocket TTS

POCKET_VOICE = next(iter(random_pocket.VOICES))


def write_pocket_tts(folder: Path, kind: str = "published") -> list[str]:
    """Write a release of Pocket TTS."""
    return ["pocket-tts", "--model", str(random_pocket.write_release(folder, kind))]


def pocket_tts_config(release: Path) -> Path:
    """Write the YAML file that the authors' package reads, with the paths of a release's files."""
    record = yaml.safe_load((release / "config.yaml").read_text())
    record["weights_path"] = str(release / "model.safetensors")
    table = record["flow_lm"]["lookup_table"]
    table["tokenizer_path"] = str(release / table["tokenizer_path"])
    path = release / "authors.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def load_pocket_tts(release: Path) -> Speak:
    """Load the package pocket-tts."""
    from pocket_tts.models.tts_model import TTSModel

    model = TTSModel.load_model(config=pocket_tts_config(release), eos_threshold=1e9)
    state = model.get_state_for_audio_prompt(release / "embeddings" / f"{POCKET_VOICE}.safetensors")

    def speak(frames: int) -> Iterator[int]:
        model._estimate_max_gen_len = lambda tokens: frames
        for samples in model.generate_audio_stream(state, TEXT, max_tokens=1000):
            yield samples.shape[-1]

    return speak


CONTENDERS = {
    "pocket_tts": Contender(
        write=write_pocket_tts,
        load=load_pocket_tts,
        samples=1920,
        voice=POCKET_VOICE,
        packages=("pocket-tts",),
        sizes="as published: language model 89.4 M parameters, codec 20.1 M; float32",
    ),
}


# ----- both sides


def check(samples: int, expected: int) -> None:
    """Raise RuntimeError if a reply has another number of samples."""
    if samples != expected:
        raise RuntimeError(f"expected {expected} samples, got {samples}")


def speak_with_package(contender: Contender, release: Path, frames: int) -> dict[str, Any]:
    """Return processor time and first audio, in seconds, of one reply by the authors' code, and its versions."""
    speak, cpu, first = contender.load(release), 0.0, 0.0
    for number in (WARM_UP, frames):
        sent, begun, first, samples = time.perf_counter(), time.process_time(), 0.0, 0
        for size in speak(number):
            first = first or time.perf_counter() - sent
            samples += size
        cpu = time.process_time() - begun
        check(samples, number * contender.samples)
    versions = {name: version(name) for name in contender.packages}
    return {"cpu_s": cpu, "first_audio_s": first, "versions": versions}


def package_figures(arguments: argparse.Namespace, release: Path) -> dict[str, Any]:
    """Return the result of `speak_with_package` in a separate process."""
    path = os.pathsep.join([str(arguments.package), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.authors", "--family", arguments.family, "--release", str(release)]
    command += ["--frames", str(arguments.frames)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


async def speak(client: SpeechClient, contender: Contender, seed: int, frames: int) -> float:
    """Generate one reply of `frames` frames; return the seconds until its first samples."""
    sent, first, samples = time.perf_counter(), 0.0, 0
    reply = client.speak(TEXT, voice=contender.voice, seed=seed, audio={"min_rows": frames, "max_rows": frames})
    async for event in reply:
        if event.pcm is not None:
            first = first or time.perf_counter() - sent
            samples += len(event.pcm)
    check(samples, frames * contender.samples)
    return first


async def measure(address: str, release: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of each number of streams."""
    pids, frames, contender = served_processes(), arguments.frames, CONTENDERS[arguments.family]
    theirs, ours = list[dict[str, Any]](), defaultdict[int, list[float]](list)
    first, by_process = defaultdict[int, list[float]](list), defaultdict[int, dict[str, float]](dict)
    async with SpeechClient(address) as client:
        warm_up = (speak(client, contender, seed, WARM_UP) for seed in range(max(arguments.concurrency)))
        await asyncio.gather(*warm_up)
        for number in range(arguments.rounds):
            theirs.append(package_figures(arguments, release))
            for streams in arguments.concurrency:
                before = cpu_s(pids)
                seeds = range(1000 * number, 1000 * number + streams)
                first[streams] += await asyncio.gather(*(speak(client, contender, seed, frames) for seed in seeds))
                used = {name: seconds - before[name] for name, seconds in cpu_s(pids).items()}
                ours[streams].append(streams * frames / sum(used.values()))
                for name, seconds in used.items():
                    by_process[streams][name] = by_process[streams].get(name, 0.0) + seconds
    speeds = [frames / each["cpu_s"] for each in theirs]
    return [
        {
            "streams": streams,
            "frames": frames,
            "rounds": arguments.rounds,
            "frames_per_cpu_s": round(statistics.median(ours[streams]), 2),
            "package_frames_per_cpu_s": round(statistics.median(speeds), 2),
            "ratio": round(median_ratio(ours[streams], speeds), 2),
            "first_audio_s": round(statistics.median(first[streams]), 3),
            "package_first_audio_s": round(statistics.median(each["first_audio_s"] for each in theirs), 3),
            "cpu_ms_per_frame": {
                name: round(1000 * seconds / (streams * frames * arguments.rounds), 2)
                for name, seconds in by_process[streams].items()
            },
            "sizes": contender.sizes,
            "package": theirs[-1]["versions"],
        }
        for streams in arguments.concurrency
    ]


def main(arguments: argparse.Namespace) -> None:
    """Write and serve a release, measure, and append the result lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = CONTENDERS[arguments.family].write(folder / "release")
        assert convert([*words, "--out", str(folder / "checkpoint")]) == 0
        assert make_repository(["--checkpoint", str(folder / "checkpoint"), "--out", str(folder / "served")]) == 0
        with serving(folder / "served") as address:
            for figures in asyncio.run(measure(address, folder / "release", arguments)):
                append_result(arguments.out, arguments.family, figures)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "authors",
        family=("pocket_tts", f"one of {', '.join(CONTENDERS)}"),
        package=(Path, "folder with the authors' package and its requirements"),
        concurrency=([1, 4, 16], "numbers of streams"),
        frames=(100, "frames of a reply"),
        rounds=(3, "turns of each arm"),
        release=(Path, "used by the benchmark itself: run the authors' code with this release"),
    )
    arguments = parser.parse_args()
    if arguments.family not in CONTENDERS:
        parser.error(f"--family: expected one of {', '.join(CONTENDERS)}, got {arguments.family}")
    if arguments.package is None and arguments.release is None:
        parser.error("--package: expected the folder of the authors' package")
    return arguments


if __name__ == "__main__":
    given = parse()
    if given.release:
        print(json.dumps(speak_with_package(CONTENDERS[given.family], given.release, given.frames)))
    else:
        main(given)
