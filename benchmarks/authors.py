"""Frames per second of processor time of the complete server and, in turns, of a family's authors' own code.

    python -m benchmarks.authors --family pocket_tts --package FOLDER --concurrency 1 4 16 --rounds 3

A release with random weights is written, converted and served; its dimensions are in `sizes` of the result. FOLDER has
the authors' package, installed by `pip install --target FOLDER --no-deps` as in `scripts/nightly.sh`, and runs with
the libraries of this environment. Replies have a fixed number of frames, and prompts the same text and voice. In each
round the authors' code speaks first, one reply in a process of its own, and then streams speak at the same time
through the server. Products of both sides use one thread (`OMP_NUM_THREADS`), as by default here. Each reply must have
the expected number of samples.

    python -m benchmarks.authors --family pocket_tts_2m --package FOLDER --quantize none int8 --ports int8

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
    kyutai_tts   moshi==0.2.13 einops sphn==0.1.12; also for kyutai_tts_large
    orpheus      no folder: orpheus-speech==0.1.0 snac==1.2.1 are installed in an environment of their own, with the
                 packages of requirements/dev.txt but without Stretto, and `--python` is its interpreter. Stretto's
                 environment needs `pip install ./examples/custom_family`.

`frames_per_cpu_s`: frames over the processor time of all processes of the server, without this one, or of the package;
`ratio`: median of the server's over the package's in the same round. `first_audio_s`: median time from request to first
samples. `pss_mb`: memory of all processes, after the last reply of all streams. `cpu_ms_per_frame`: of each process.
`ports`: the same figures of each port. One line of JSON for each weight format and number of streams.
"""

import argparse
import asyncio
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from benchmarks.checkpoints import (
    random_chatterbox,
    random_cosyvoice3,
    random_kyutai_stt,
    random_kyutai_tts,
    random_orpheus,
    random_pocket,
)
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
from stretto.convert.command import main as convert
from stretto.convert.make_repository import main as make_repository
from stretto.families.kyutai_tts.family import GUIDANCE_SCALE
from stretto_client import SpeechClient, SpeechOptions, Timeouts

TEXT = "The birch canoe slid on the smooth planks and the garden door is open at last."
STORED = "none"  # weight format: as stored
WARM_UP = 12  # frames of the reply before the measured ones, on both sides
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
        engine: Engine arguments that replace the default ones, for models whose cache would be larger than needed.
        rows: Rows of the language model for a frame.
        unsent: Frames of a reply that the authors' code does not return.
        text: Text that is spoken.
        rows_before: Rows of a reply that start no frame.
        ports: Further contenders for the same release, as `load`, by name.
    """

    write: Callable[[Path], list[str]]
    load: Callable[[Path], Speak]
    samples: int
    voice: str
    packages: tuple[str, ...]
    sizes: str
    engine: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rows: int = 1
    unsent: int = 0
    text: str = TEXT
    rows_before: int = 0
    ports: Mapping[str, Callable[[Path], Speak]] = field(default_factory=dict, hash=False)


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


def load_pocket_tts(release: Path, quantize: bool = False) -> Speak:
    """Load the package pocket-tts, in float32 or with its own quantization."""
    from pocket_tts.models.tts_model import TTSModel

    model = TTSModel.load_model(config=pocket_tts_config(release), eos_threshold=1e9, quantize=quantize)
    state = model.get_state_for_audio_prompt(release / "embeddings" / f"{POCKET_VOICE}.safetensors")

    def speak(frames: int) -> Iterator[int]:
        model._estimate_max_gen_len = lambda tokens: frames
        for samples in model.generate_audio_stream(state, TEXT, max_tokens=1000):
            yield samples.shape[-1]

    return speak


# ----- Chatterbox


def write_chatterbox(folder: Path) -> list[str]:
    """Write the English release of Chatterbox."""
    release = str(random_chatterbox.write_published(folder))
    file = str(folder / random_chatterbox.T3_FILE)
    return ["chatterbox", "--model", file, "--tokenizer", release, "--codec", release]


def load_chatterbox(release: Path) -> Speak:
    """Load the package chatterbox-tts, without its watermark."""
    from chatterbox.tts import ChatterboxTTS

    model = ChatterboxTTS.from_local(release, "cpu")
    model.watermarker.apply_watermark = lambda samples, sample_rate: samples
    infer = model.t3.inference

    def speak(frames: int) -> Iterator[int]:
        model.t3.inference = lambda **given: infer(**given | {"max_new_tokens": frames})
        yield model.generate(TEXT).shape[-1]

    return speak


# ----- CosyVoice 3

COSYVOICE_VOICE = "anna"


def write_cosyvoice3(folder: Path) -> list[str]:
    """Write a release of CosyVoice 3."""
    words = re.findall(r" ?\w+", TEXT)
    return ["cosyvoice3", "--model", str(random_cosyvoice3.write_published(folder, words))]


def load_cosyvoice3(release: Path) -> Speak:
    """Load the authors' repository, with streaming as in their `inference_zero_shot`."""
    from scripts import cosyvoice3_replies

    authors = import_module("tests.codecs.cosyvoice3.authors")
    cosyvoice3_replies.MISSING["cosyvoice.utils.file_utils"] = (
        "logging",
        "convert_onnx_to_trt",
        "export_cosyvoice2_vllm",
    )
    authors.stand_in()
    cosyvoice3_replies.stand_in()
    from cosyvoice.cli.model import CosyVoice3Model
    from cosyvoice.tokenizer.tokenizer import CosyVoice3Tokenizer

    tokenizer = CosyVoice3Tokenizer(str(release / random_cosyvoice3.BACKBONE))
    known, backbone = random_cosyvoice3.PUBLISHED, random_cosyvoice3.QWEN2
    sampling = import_module("cosyvoice.utils.common").ras_sampling
    llm = cosyvoice3_replies.language_model_of(backbone, known, sampling)
    model = CosyVoice3Model(llm, *authors.networks(random_cosyvoice3.WIDE))
    model.load(*(release / f"{name}.pt" for name in ("llm", "flow", "hift")))
    voice, infer = torch.load(release / "spk2info.pt")[COSYVOICE_VOICE], llm.inference
    text = torch.tensor([tokenizer.encode(TEXT)])

    def speak(frames: int) -> Iterator[int]:
        ratio = (frames + 0.5) / text.shape[1]  # codes for each token of the text, rounded down
        llm.inference = partial(infer, max_token_text_ratio=ratio)
        model.token_hop_len = 25  # their own replies after the first one begin with 100
        codes = voice["flow_prompt_speech_token"]
        for chunk in model.tts(text=text, llm_prompt_speech_token=codes, stream=True, **voice):
            yield chunk["tts_speech"].shape[-1]

    return speak


# ----- Orpheus

ORPHEUS_LAYERS, ROWS_PER_FRAME = 7, 7


def write_orpheus(folder: Path) -> list[str]:
    """Write a release of Orpheus with fewer layers than published."""
    release = random_orpheus.write_published(folder, ORPHEUS_LAYERS)
    return ["orpheus", "--model", str(release), "--codec", str(release / "snac")]


def load_orpheus(release: Path) -> Speak:
    """Load the package orpheus-speech, which serves with vLLM, on a CPU; its engine is a process of its own."""
    import snac

    codec = snac.SNAC.from_config(release / "snac" / "config.json")
    weights = torch.load(release / "snac" / "pytorch_model.bin")
    codec.load_state_dict(
        {name: each for name, each in weights.items() if not name.startswith("encoder.")}, strict=False
    )
    codec.to = lambda device: codec
    snac.SNAC.from_pretrained = lambda name: codec
    from orpheus_tts import OrpheusModel, decoder, engine_class

    decoder.snac_device = "cpu"
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    # vLLM's engine belongs to one event loop, but the package starts another for each reply.
    engine_class.asyncio = SimpleNamespace(run=lambda job: asyncio.run_coroutine_threadsafe(job, loop).result())
    model = OrpheusModel(str(release))

    def speak(frames: int) -> Iterator[int]:
        for chunk in model.generate_speech(prompt=TEXT, voice="tara", max_tokens=ROWS_PER_FRAME * frames):
            yield len(chunk) // 2

    return speak


# ----- Kyutai TTS

KYUTAI_TEXT = " ".join(random_kyutai_stt.TEXT * 4)  # the text is longer than the replies, which a limit ends
KYUTAI_VOICE, KYUTAI_VOICE_S = "anna", 3.0


def write_kyutai_tts(folder: Path, size: str) -> list[str]:
    """Write a release of Kyutai TTS, with the voice `KYUTAI_VOICE`."""
    release = random_kyutai_tts.write_published(folder, size)
    if size == "0.75b":
        random_kyutai_tts.write_recording(release / "voices" / f"{KYUTAI_VOICE}.wav", KYUTAI_VOICE_S)
    return ["kyutai-tts", "--model", str(release), "--config", str(release / "config.json")]


def load_kyutai_tts(release: Path) -> Speak:
    """Load the package moshi, which decodes each frame as soon as it is there, as the authors' server does."""
    from moshi.models import loaders

    from scripts import kyutai_tts_replies

    config = json.loads((release / "config.json").read_text())
    has_vectors = bool(config["conditioners"])
    model = kyutai_tts_replies.load(release, 1.0 if has_vectors else GUIDANCE_SCALE)
    model.mimi = mimi = loaders.get_mimi(release / config["mimi_name"], num_codebooks=config["n_q"])
    given: dict[str, Any] = {"attributes": [], "prefixes": None}
    if has_vectors:
        (voice,) = release.glob(f"voices/{random_kyutai_tts.VOICES[0]}.*")
        given["attributes"] = [model.make_condition_attributes([voice], cfg_coef=GUIDANCE_SCALE)]
    else:
        given["prefixes"] = [model.get_prefix(release / "voices" / f"{KYUTAI_VOICE}.wav")]
    num_given = 0 if has_vectors else given["prefixes"][0].shape[1]

    def speak(frames: int) -> Iterator[int]:
        sizes, index = queue.SimpleQueue[int | None](), 0

        def decode(frame: torch.Tensor) -> None:
            nonlocal index
            index += 1
            if index > model.delay_steps:
                samples = mimi.decode(frame[:, 1:])
                if index > model.delay_steps + num_given:
                    sizes.put(samples.shape[-1])

        def generate() -> None:
            model.max_gen_length = max(config["delays"]) + model.delay_steps + num_given + frames
            try:
                with torch.no_grad(), mimi.streaming(1):
                    model.generate([model.prepare_script([KYUTAI_TEXT])], on_frame=decode, **given)
            finally:
                sizes.put(None)

        threading.Thread(target=generate, daemon=True).start()
        while (size := sizes.get()) is not None:
            yield size

    return speak


# 18 rows: the text is 16 rows ahead of the first codebook, and that one 2 rows ahead of the others.
kyutai_tts = partial(
    Contender, load=load_kyutai_tts, samples=1920, packages=("moshi",), text=KYUTAI_TEXT, rows_before=18
)

pocket_tts = partial(
    Contender,
    load=load_pocket_tts,
    samples=1920,
    voice=POCKET_VOICE,
    packages=("pocket-tts",),
    ports={"int8": partial(load_pocket_tts, quantize=True)},
)

CONTENDERS = {
    "pocket_tts": pocket_tts(
        write=write_pocket_tts,
        sizes="as published: language model 89.4 M parameters, codec 20.1 M; float32",
    ),
    **{
        f"pocket_tts_{size}": pocket_tts(
            write=partial(write_pocket_tts, kind=f"published_{size}"),
            sizes=f"as published: language model {model} M parameters, codec {codec} M without its encoder; float32",
        )
        for size, model, codec in (("2m", 0.9, 1.0), ("7m", 4.3, 2.6), ("18m", 15.6, 2.6))
    },
    "chatterbox": Contender(
        write=write_chatterbox,
        load=load_chatterbox,
        samples=960,
        voice="default",
        packages=("chatterbox-tts",),
        sizes="as published: T3 30 layers of 1024, always guided; S3Gen with 10 guided steps, voice of 3 s; float32",
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 2 << 30},
    ),
    "cosyvoice3": Contender(
        write=write_cosyvoice3,
        load=load_cosyvoice3,
        samples=960,
        voice=COSYVOICE_VOICE,
        packages=(),
        sizes="as published: Qwen2 24 layers of 896; flow 22 layers of 1024, 10 guided steps, voice of 3 s; float32",
    ),
    "orpheus": Contender(
        write=write_orpheus,
        load=load_orpheus,
        samples=2048,
        voice="tara",
        packages=("orpheus-speech", "snac"),
        sizes=f"Llama {ORPHEUS_LAYERS} of 28 layers of 3072 and the whole table, bfloat16; SNAC as published, float32",
        rows=ROWS_PER_FRAME,
        unsent=3,
    ),
    "kyutai_tts": kyutai_tts(
        write=partial(write_kyutai_tts, size="0.75b"),
        voice=KYUTAI_VOICE,
        sizes="0.8 B parameters: 24 layers of 1024 (assumed), 16 codebooks, depth 4 layers of 1024, always "
        "guided, voice of 3 s; Mimi as published; float32",
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 2 << 30},
    ),
    "kyutai_tts_large": kyutai_tts(
        write=partial(write_kyutai_tts, size="1.6b"),
        voice=random_kyutai_tts.VOICES[0],
        sizes="1.6B, as published: 16 layers of 2048, 32 codebooks, depth 4 layers of 1024; Mimi as published; float32",
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 1 << 30, "max_num_seqs": 8},
    ),
}


# ----- both sides


def check(samples: int, expected: int) -> None:
    """Raise RuntimeError if a reply has another number of samples."""
    if samples != expected:
        raise RuntimeError(f"expected {expected} samples, got {samples}")


def speak_with_package(
    contender: Contender, release: Path, frames: int, load: Callable[[Path], Speak] | None = None
) -> dict[str, Any]:
    """Speak one reply with the authors' code, or with the port that `load` loads.

    Returns:
        Processor time `cpu_s` and first audio `first_audio_s` in seconds, memory `pss_mb`, and versions.
    """
    speak, cpu, first = (load or contender.load)(release), 0.0, 0.0
    for number in (WARM_UP, frames):
        pids = {"this": os.getpid(), **served_processes()}
        sent, begun, first, samples = time.perf_counter(), cpu_s(pids), 0.0, 0
        for size in speak(number):
            first = first or time.perf_counter() - sent
            samples += size
        cpu = sum(cpu_s(pids).values()) - sum(begun.values())
        check(samples, (number - contender.unsent) * contender.samples)
    versions = {name: version(name) for name in contender.packages}
    return {"cpu_s": cpu, "first_audio_s": first, "pss_mb": memory_mb(pids), "versions": versions}


def package_figures(arguments: argparse.Namespace, release: Path, port: str = "") -> dict[str, Any]:
    """Return the result of `speak_with_package` in a separate process."""
    path = [str(each) for each in (arguments.package, ROOT, ROOT / "python_backend", ROOT / "client") if each]
    command = [arguments.python, "-m", "benchmarks.authors", "--family", arguments.family, "--release", str(release)]
    command += ["--frames", str(arguments.frames), *(["--ports", port] if port else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(next(line for line in out.splitlines() if line.startswith('{"cpu_s"')))
    return found


async def speak(client: SpeechClient, contender: Contender, seed: int, frames: int) -> float:
    """Generate one reply of `frames` frames; return the seconds until its first samples."""
    sent, first, samples, rows = time.perf_counter(), 0.0, 0, contender.rows_before + contender.rows * frames
    options: SpeechOptions = {"seed": seed, "audio": {"min_rows": rows, "max_rows": rows}}
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
        pids: Its processes.
        speeds: Frames per processor second of each round, by number of streams.
        first: First audio of each reply in seconds, by number of streams.
        by_process: Processor seconds of each process, by number of streams.
        pss_mb: Memory after the latest round, by number of streams.
    """

    client: SpeechClient
    pids: Mapping[str, int]
    speeds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    by_process: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    pss_mb: dict[int, float] = field(default_factory=dict)

    async def turn(self, contender: Contender, number: int, streams: int, frames: int) -> None:
        """Speak replies at the same time."""
        before, seeds = cpu_s(self.pids), range(1000 * number, 1000 * number + streams)
        self.first[streams] += await asyncio.gather(*(speak(self.client, contender, seed, frames) for seed in seeds))
        used = {name: seconds - before[name] for name, seconds in cpu_s(self.pids).items()}
        self.speeds[streams].append(streams * frames / sum(used.values()))
        self.pss_mb[streams] = memory_mb(self.pids)
        for name, seconds in used.items():
            self.by_process[streams][name] = self.by_process[streams].get(name, 0.0) + seconds


async def measure(
    served: Mapping[str, tuple[str, Mapping[str, int]]], release: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the figures of each weight format and number of streams.

    `served` has the address and processes of each weight format's server.
    """
    frames, contender = arguments.frames, CONTENDERS[arguments.family]
    theirs, servers = defaultdict[str, list[dict[str, Any]]](list), dict[str, Server]()
    async with AsyncExitStack() as stack:
        for name, (address, pids) in served.items():
            client = await stack.enter_async_context(SpeechClient(address, Timeouts(3600, 3600, 3600)))
            servers[name] = Server(client, pids)
            await speak(client, contender, 0, WARM_UP)
        for number in range(arguments.rounds):
            for port in ("", *arguments.ports):
                theirs[port].append(await asyncio.to_thread(package_figures, arguments, release, port))
            for server in servers.values():
                for streams in arguments.concurrency:
                    await server.turn(contender, number, streams, frames)
    packages = {port: port_figures(found, frames) for port, found in theirs.items()}
    return [
        {
            "quantize": None if name == STORED else name,
            "streams": streams,
            "frames": frames,
            "rounds": arguments.rounds,
            "frames_per_cpu_s": round(statistics.median(server.speeds[streams]), 2),
            "package_frames_per_cpu_s": packages[""]["frames_per_cpu_s"],
            "ratio": ratio(server.speeds[streams], theirs[""], frames),
            "first_audio_s": round(statistics.median(server.first[streams]), 3),
            "package_first_audio_s": packages[""]["first_audio_s"],
            "pss_mb": round(server.pss_mb[streams]),
            "package_pss_mb": packages[""]["pss_mb"],
            "cpu_ms_per_frame": {
                process: round(1000 * seconds / (streams * frames * arguments.rounds), 2)
                for process, seconds in server.by_process[streams].items()
            },
            "ports": {
                port: packages[port] | {"ratio": ratio(server.speeds[streams], theirs[port], frames)}
                for port in arguments.ports
            },
            "sizes": contender.sizes,
            "package": theirs[""][-1]["versions"],
        }
        for name, server in servers.items()
        for streams in arguments.concurrency
    ]


def ratio(speeds: Sequence[float], theirs: Iterable[Mapping[str, Any]], frames: int) -> float:
    """Return the median of the server's frames per processor second over theirs in the same round."""
    return round(median_ratio(speeds, [frames / each["cpu_s"] for each in theirs]), 2)


def port_figures(found: Sequence[Mapping[str, Any]], frames: int) -> dict[str, Any]:
    """Return the medians of the rounds of the authors' code, or of a port."""
    return {
        "frames_per_cpu_s": round(statistics.median(frames / each["cpu_s"] for each in found), 2),
        "first_audio_s": round(statistics.median(each["first_audio_s"] for each in found), 3),
        "pss_mb": round(statistics.median(each["pss_mb"] for each in found)),
    }


def main(arguments: argparse.Namespace) -> None:
    """Write and serve a release, measure, and append the result lines."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        contender, engine = CONTENDERS[arguments.family], folder / "engine.json"
        words = contender.write(folder / "release")
        assert convert([*words, "--out", str(folder / "checkpoint")]) == 0
        engine.write_text(json.dumps(contender.engine))
        served, known = dict[str, tuple[str, Mapping[str, int]]](), set[int]()
        for quantize in arguments.quantize:
            words = ["--checkpoint", str(folder / "checkpoint"), "--engine-args", str(engine)]
            words += ["--quantize", quantize] if quantize != STORED else []
            assert make_repository([*words, "--out", str(folder / f"served-{quantize}")]) == 0
            address = stack.enter_context(serving(folder / f"served-{quantize}"))
            pids = {name: pid for name, pid in served_processes().items() if pid not in known}
            known |= set(pids.values())
            served[quantize] = (address, pids)
        for figures in asyncio.run(measure(served, folder / "release", arguments)):
            append_result(arguments.out, arguments.family, figures)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "authors",
        family=("pocket_tts", f"one of {', '.join(CONTENDERS)}"),
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
    if arguments.family not in CONTENDERS:
        parser.error(f"--family: expected one of {', '.join(CONTENDERS)}, got {arguments.family}")
    arguments.ports, known = [each for each in arguments.ports if each], CONTENDERS[arguments.family].ports
    if unknown := set(arguments.ports) - known.keys():
        parser.error(f"--ports: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    given = parse()
    if given.release:
        found = CONTENDERS[given.family]
        port = found.ports[given.ports[0]] if given.ports else None
        print(json.dumps(speak_with_package(found, given.release, given.frames, port)))
    else:
        main(given)
