"""Frames per second of processor time of the complete server and, in turns, of a family's authors' own code.

    python -m benchmarks.authors --family pocket_tts --package FOLDER --concurrency 1 4 16 --rounds 3

A release with random weights is written, converted and served; its dimensions are in `sizes` of the result. FOLDER has
the authors' package, installed by `pip install --target FOLDER --no-deps` as in `scripts/nightly.sh`, and runs with
the libraries of this environment. Replies have a fixed number of frames, and prompts the same text and voice. In each
round the authors' code speaks first, one reply in a process of its own, and then streams speak at the same time
through the server. Products of both sides use one thread (`OMP_NUM_THREADS`), as by default here. Each reply must have
the expected number of samples.

    python -m benchmarks.authors --family pocket_tts_2m --package FOLDER --quantize none int8 --ports int8

    python -m benchmarks.authors --family chatterbox_nano --concurrency 1

Without `--package` and `--python`, and for families of `ALONE`, the server is measured alone. A family that transcribes
gets recordings of noise; its frames are those of the recording, and its first audio is the first text.

`--quantize` names weight formats of Stretto's language model; each has a server of its own, and they take turns.
`--ports` adds further contenders to each round: for Pocket TTS `int8`, the package's own quantization of its language
model (with the package torchao if FOLDER has it).

Folders, each from `pip install --target FOLDER --no-deps`:

    pocket_tts   pocket-tts==4.0.1 beartype sentencepiece scipy requests torchao==0.18.0; also for pocket_tts_2m,
                 pocket_tts_7m and pocket_tts_18m, the small English models
    chatterbox   chatterbox-tts==0.1.7 s3tokenizer==0.3.0 conformer==0.3.2 diffusers==0.29.0 librosa==0.11.0 omegaconf
                 torchaudio (for CPUs) resemble-perth pyloudnorm scipy soxr lazy_loader pooch joblib msgpack audioread
                 future threadpoolctl decorator onnx
    cosyvoice3   x-transformers==2.11.24 einops einx frozendict loguru scipy, and the folder cosyvoice/ of
                 https://github.com/FunAudioLLM/CosyVoice at ace7c47
    moss_tts_nano  the folder models/ of https://github.com/ml-inory/moss-tts-nano.axera at 20017d7, as moss_nano/models
    kyutai_tts   moshi==0.2.13 einops sphn==0.1.12; also for kyutai_tts_large
    orpheus      no folder: orpheus-speech==0.1.0 snac==1.2.1 are installed in an environment of their own, with the
                 packages of requirements/dev.txt but without Stretto, and `--python` is its interpreter. Stretto's
                 environment needs `pip install ./examples/custom_family`.

`frames_per_cpu_s`: frames over the processor time of all processes of the server, without this one, or of the package;
`cores`: the same time of the server over the seconds of audio in one reply; `audio_rtf`: median time until all replies
have ended, over the same seconds. `ratio`: median of the server's over the package's in the same round.
`first_audio_s`: median time from request to first samples. `pss_mb`: memory of all processes, after the last reply of
all streams. `cpu_ms_per_frame`: of each process. `ports`: the same figures of each port. One line of JSON for each
weight format and number of streams.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contenders import ALONE, CONTENDERS, Contender, Speak
from benchmarks.harness import (
    ROOT,
    append_result,
    command_line,
    cpu_s,
    median_ratio,
    memory_mb,
    served_processes,
    serving,
)
from benchmarks.loads import NOISE_RATE, noise
from stretto.convert.command import main as convert
from stretto.convert.make_repository import main as make_repository
from stretto_client import SpeechClient, SpeechOptions, Timeouts

STORED = "none"  # weight format: as stored
WARM_UP = 12  # frames of the reply before the measured ones, on both sides
KNOWN = CONTENDERS | ALONE


def check(samples: int, expected: int) -> None:
    """Raise RuntimeError if a reply does not have the expected number of samples."""
    if samples != expected:
        raise RuntimeError(f"expected {expected} samples, got {samples}")


def speak_with_package(
    contender: Contender, release: Path, frames: int, load: Callable[[Path], Speak] | None = None
) -> dict[str, Any]:
    """Speak one reply with the authors' code, or with the port that `load` loads, and return its costs.

    These are processor time `cpu_s` and first audio `first_audio_s` in seconds, memory `pss_mb`, and versions.
    """
    load = load or contender.load
    assert load is not None
    speak = load(release)
    cpu = 0.0
    first = 0.0
    for number in (WARM_UP, frames):
        pids = {"this": os.getpid(), **served_processes()}
        sent = time.perf_counter()
        begun = cpu_s(pids)
        first = 0.0
        samples = 0
        for size in speak(number):
            first = first or time.perf_counter() - sent
            samples += size
        cpu = sum(cpu_s(pids).values()) - sum(begun.values())
        check(samples, (number - contender.unsent) * contender.samples)
    versions = {name: version(name) for name in contender.packages}
    return {"cpu_s": cpu, "first_audio_s": first, "pss_mb": memory_mb(pids), "versions": versions}


def package_figures(arguments: argparse.Namespace, release: Path, port: str = "") -> dict[str, Any]:
    """Run `speak_with_package` in a process of the environment that has the authors' code; return its result."""
    folders = (ROOT, ROOT / "python_backend", ROOT / "contract", ROOT / "client", *ROOT.glob("plugins/*"))
    path = [str(folder) for folder in (arguments.package, *folders) if folder]
    command = [arguments.python, "-m", "benchmarks.authors", "--family", arguments.family, "--release", str(release)]
    command += ["--frames", str(arguments.frames), *(["--ports", port] if port else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(next(line for line in out.splitlines() if line.startswith('{"cpu_s"')))
    return figures


async def listen(client: SpeechClient, contender: Contender, seed: int, frames: int) -> float:
    """Transcribe a recording of `frames` frames; return the seconds until its first text."""
    sent = time.perf_counter()
    first = 0.0
    heard_s = 0.0
    seconds = frames * contender.samples / contender.sample_rate
    async for event in client.transcribe((noise(seconds, seed), NOISE_RATE)):
        if event.text:
            first = first or time.perf_counter() - sent
        if event.report is not None:
            heard_s = event.report["input_audio_s"]
    check(round(heard_s * contender.sample_rate), frames * contender.samples)
    if not first:
        raise RuntimeError("expected a text, got none")
    return first


async def speak(client: SpeechClient, contender: Contender, seed: int, frames: int) -> float:
    """Generate one reply of `frames` frames; return the seconds until its first samples."""
    if contender.voice == "":
        return await listen(client, contender, seed, frames)
    sent = time.perf_counter()
    first = 0.0
    samples = 0
    rows = contender.rows_before + contender.rows * (frames - contender.silent)
    options: SpeechOptions = {**contender.options, "seed": seed, "audio": {"min_rows": rows, "max_rows": rows}}
    async for event in client.speak(contender.text, voice=contender.voice, **options):
        if event.pcm is not None:
            first = first or time.perf_counter() - sent
            samples += len(event.pcm)
    check(samples, frames * contender.samples)
    return first


@dataclass
class Server:
    """Server with one weight format, and its figures so far.

    Attributes:
        speeds: Frames per processor second of each round, by number of streams.
        wall_s: Wall time of each round in seconds, by number of streams.
        first: First audio of each reply in seconds, by number of streams.
        by_process: Processor seconds of each process, by number of streams.
        pss_mb: Memory after the latest round, by number of streams.
    """

    client: SpeechClient
    pids: Mapping[str, int]
    speeds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    wall_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    by_process: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    pss_mb: dict[int, float] = field(default_factory=dict)

    async def turn(self, contender: Contender, number: int, streams: int, frames: int) -> None:
        """Speak `streams` replies at the same time."""
        before = cpu_s(self.pids)
        seeds = range(1000 * number, 1000 * number + streams)
        begun = time.perf_counter()
        self.first[streams] += await asyncio.gather(*(speak(self.client, contender, seed, frames) for seed in seeds))
        self.wall_s[streams].append(time.perf_counter() - begun)
        used = {name: seconds - before[name] for name, seconds in cpu_s(self.pids).items()}
        self.speeds[streams].append(streams * frames / sum(used.values()))
        self.pss_mb[streams] = memory_mb(self.pids)
        for name, seconds in used.items():
            self.by_process[streams][name] = self.by_process[streams].get(name, 0.0) + seconds


async def measure(
    served: Mapping[str, tuple[str, Mapping[str, int]]], release: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the figures of each weight format and number of streams.

    Args:
        served: Address and processes of each weight format's server.
    """
    frames = arguments.frames
    contender = KNOWN[arguments.family]
    sides = ("", *arguments.ports) if arguments.has_package else ()
    audio_s = frames * contender.samples / contender.sample_rate
    theirs = defaultdict[str, list[dict[str, Any]]](list)
    servers = dict[str, Server]()
    async with AsyncExitStack() as stack:
        for name, (address, pids) in served.items():
            client = await stack.enter_async_context(SpeechClient(address, Timeouts(3600, 3600, 3600)))
            servers[name] = Server(client, pids)
            await speak(client, contender, 0, WARM_UP)
        for number in range(arguments.rounds):
            for port in sides:
                theirs[port].append(await asyncio.to_thread(package_figures, arguments, release, port))
            for server in servers.values():
                for streams in arguments.concurrency:
                    await server.turn(contender, number, streams, frames)
    packages = {port: port_figures(figures, frames) for port, figures in theirs.items()}
    return [
        {
            "quantize": None if name == STORED else name,
            "streams": streams,
            "frames": frames,
            "rounds": arguments.rounds,
            "frames_per_cpu_s": round(statistics.median(server.speeds[streams]), 2),
            "cores": round(frames * streams / audio_s / statistics.median(server.speeds[streams]), 3),
            "audio_rtf": round(statistics.median(server.wall_s[streams]) / audio_s, 3),
            "first_audio_s": round(statistics.median(server.first[streams]), 3),
            "pss_mb": round(server.pss_mb[streams]),
            "cpu_ms_per_frame": {
                process: round(1000 * seconds / (streams * frames * arguments.rounds), 2)
                for process, seconds in server.by_process[streams].items()
            },
            "sizes": contender.sizes,
            **(beside_package(server.speeds[streams], theirs, packages, frames) if theirs else {}),
        }
        for name, server in servers.items()
        for streams in arguments.concurrency
    ]


def beside_package(
    speeds: Sequence[float],
    theirs: Mapping[str, list[dict[str, Any]]],
    packages: Mapping[str, dict[str, Any]],
    frames: int,
) -> dict[str, Any]:
    """Return the figures of the authors' code and of the ports, and the ratios of the server's `speeds` to theirs."""
    ratios = {port: {"ratio": ratio(speeds, figures, frames)} for port, figures in theirs.items()}
    return {
        **ratios[""],
        **{f"package_{name}": value for name, value in packages[""].items()},
        "ports": {port: packages[port] | ratios[port] for port in theirs if port},
        "package": theirs[""][-1]["versions"],
    }


def ratio(speeds: Sequence[float], theirs: Iterable[Mapping[str, Any]], frames: int) -> float:
    """Return the median ratio, over rounds, of the server's frames per processor second to theirs."""
    return round(median_ratio(speeds, [frames / round_of_theirs["cpu_s"] for round_of_theirs in theirs]), 2)


def port_figures(rounds: Sequence[Mapping[str, Any]], frames: int) -> dict[str, Any]:
    return {
        "frames_per_cpu_s": round(statistics.median(frames / figures["cpu_s"] for figures in rounds), 2),
        "first_audio_s": round(statistics.median(figures["first_audio_s"] for figures in rounds), 3),
        "pss_mb": round(statistics.median(figures["pss_mb"] for figures in rounds)),
    }


def main(arguments: argparse.Namespace) -> None:
    """Write and serve a release, measure, and append the result lines."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        contender = KNOWN[arguments.family]
        engine = folder / "engine.json"
        words = contender.write(folder / "release")
        assert convert([*words, "--out", str(folder / "checkpoint")]) == 0
        engine.write_text(json.dumps(contender.engine))
        served = dict[str, tuple[str, Mapping[str, int]]]()
        known_pids = set[int]()
        for quantize in arguments.quantize:
            words = ["--checkpoint", str(folder / "checkpoint"), "--engine-args", str(engine)]
            words += ["--quantize", quantize] if quantize != STORED else []
            assert make_repository([*words, "--out", str(folder / f"served-{quantize}")]) == 0
            address = stack.enter_context(serving(folder / f"served-{quantize}"))
            pids = {name: pid for name, pid in served_processes().items() if pid not in known_pids}
            known_pids |= set(pids.values())
            served[quantize] = (address, pids)
        for figures in asyncio.run(measure(served, folder / "release", arguments)):
            append_result(arguments.out, arguments.family, figures)


def parse() -> argparse.Namespace:
    parser = command_line(
        __doc__,
        "authors",
        family=("pocket_tts", f"one of {', '.join(KNOWN)}"),
        package=(Path, "folder with the authors' package and its requirements"),
        python=(sys.executable, "interpreter that runs the authors' code; default: this one"),
        concurrency=([1, 4, 16], "numbers of streams"),
        frames=(100, "frames of a reply"),
        rounds=(3, "turns of each arm"),
        quantize=([STORED], f"weight formats of Stretto's language model: {STORED}, int8"),
        ports=([""], "further contenders, of those that the family has; default: none"),
        release=(Path, "used by the benchmark itself: run the authors' code with this release"),
    )
    arguments = parser.parse_args()
    if arguments.family not in KNOWN:
        parser.error(f"--family: expected one of {', '.join(KNOWN)}, got {arguments.family}")
    contender = KNOWN[arguments.family]
    is_own = arguments.python == sys.executable
    arguments.has_package = contender.load is not None and not (arguments.package is None and is_own)
    arguments.ports = [name for name in arguments.ports if name]
    known_ports = contender.ports
    if unknown := set(arguments.ports) - known_ports.keys():
        parser.error(f"--ports: expected some of {', '.join(known_ports)}, got {', '.join(sorted(unknown))}")
    if arguments.ports and not arguments.has_package:
        parser.error("--ports: expected --package, too")
    return arguments


if __name__ == "__main__":
    parsed = parse()
    if parsed.release:
        chosen = KNOWN[parsed.family]
        port = chosen.ports[parsed.ports[0]] if parsed.ports else None
        print(json.dumps(speak_with_package(chosen, parsed.release, parsed.frames, port)))
    else:
        main(parsed)
