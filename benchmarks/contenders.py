"""Families at their published sizes: releases with random weights, their requests, and loaders of the authors' code."""

import asyncio
import json
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from lab.releases import random_orpheus, random_qwen3_codec, random_qwen3_tts
from plugins.chatterbox.lab import random_chatterbox
from plugins.cosyvoice3.lab import random_cosyvoice3
from plugins.kyutai.lab import random_kyutai_stt, random_kyutai_tts
from plugins.magpie.lab import random_magpie
from plugins.moss.lab import random_moss_nano
from plugins.pocket.lab import random_pocket
from plugins.vibevoice.lab import random_vibevoice_realtime
from stretto_chatterbox.s3gen import NUM_SILENT
from stretto_client import SpeechOptions
from stretto_kyutai.kyutai_tts.family import GUIDANCE_SCALE

TEXT = "The birch canoe slid on the smooth planks and the garden door is open at last."
Speak = Callable[[int], Iterator[int]]  # a number of frames -> number of samples of each chunk


@dataclass(frozen=True)
class Contender:
    """Family, and its authors' code.

    Attributes:
        write: Function that writes a release to a folder, and returns the converter's arguments, except `--out`.
        samples: Samples of a frame.
        voice: Name of a voice; None for a family that needs none, empty for one that transcribes.
        sizes: Dimensions and precision of the release, in words.
        load: Function that loads the release in a folder with the authors' code, and returns a function that speaks.
        packages: Packages of the authors, whose versions are recorded.
        engine: Engine arguments that replace the default ones, for models whose cache would be larger than needed.
        rows: Rows of the language model for a frame.
        unsent: Frames of a reply that the authors' code does not return.
        rows_before: Rows of a reply that start no frame.
        silent: Frames at the end of a reply that the codec adds.
        ports: Further contenders for the same release, as `load`, by name.
        options: Options of all requests.
    """

    write: Callable[[Path], list[str]]
    samples: int
    voice: str | None
    sizes: str
    load: Callable[[Path], Speak] | None = None
    packages: tuple[str, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rows: int = 1
    unsent: int = 0
    text: str = TEXT
    rows_before: int = 0
    silent: int = 0
    sample_rate: int = 24_000
    ports: Mapping[str, Callable[[Path], Speak]] = field(default_factory=dict, hash=False)
    options: SpeechOptions = field(default_factory=SpeechOptions, hash=False)


def written(family: str, write: Callable[..., Path], folder: Path, **options: Any) -> list[str]:
    """Write a release to a folder; return the converter's arguments."""
    return [family, "--model", str(write(folder, **options))]


# ----- Pocket TTS

POCKET_VOICE = next(iter(random_pocket.VOICES))


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
        model.t3.inference = lambda **options: infer(**options | {"max_new_tokens": frames})
        yield model.generate(TEXT).shape[-1]

    return speak


# ----- CosyVoice 3

COSYVOICE_VOICE = "anna"


def write_cosyvoice3(folder: Path) -> list[str]:
    words = re.findall(r" ?\w+", TEXT)
    return ["cosyvoice3", "--model", str(random_cosyvoice3.write_published(folder, words))]


def load_cosyvoice3(release: Path) -> Speak:
    """Load the authors' repository, with streaming as in their `inference_zero_shot`."""
    from plugins.cosyvoice3.lab import cosyvoice3_replies

    authors = import_module("plugins.cosyvoice3.tests.codec.authors")
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
    vocabulary = random_cosyvoice3.PUBLISHED
    backbone = random_cosyvoice3.QWEN2
    sampling = import_module("cosyvoice.utils.common").ras_sampling
    llm = cosyvoice3_replies.language_model_of(backbone, vocabulary, sampling)
    model = CosyVoice3Model(llm, *authors.networks(random_cosyvoice3.WIDE))
    model.load(*(release / f"{name}.pt" for name in ("llm", "flow", "hift")))
    voice = torch.load(release / "spk2info.pt")[COSYVOICE_VOICE]
    infer = llm.inference
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

ORPHEUS_LAYERS = 7
ROWS_PER_FRAME = 7


def write_orpheus(folder: Path) -> list[str]:
    """Write a release of Orpheus with fewer layers than published."""
    release = random_orpheus.write_published(folder, ORPHEUS_LAYERS)
    return ["orpheus", "--model", str(release), "--codec", str(release / "snac")]


def load_orpheus(release: Path) -> Speak:
    """Load the package orpheus-speech, which serves with vLLM, on a CPU, with the engine in a separate process."""
    import snac

    codec = snac.SNAC.from_config(release / "snac" / "config.json")
    weights = torch.load(release / "snac" / "pytorch_model.bin")
    codec.load_state_dict(
        {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.")}, strict=False
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
KYUTAI_VOICE = "anna"
KYUTAI_VOICE_S = 3.0


def write_kyutai_tts(folder: Path, size: str) -> list[str]:
    """Write a release of Kyutai TTS, with the voice `KYUTAI_VOICE`."""
    release = random_kyutai_tts.write_published(folder, size)
    if size == "0.75b":
        random_kyutai_tts.write_recording(release / "voices" / f"{KYUTAI_VOICE}.wav", KYUTAI_VOICE_S)
    return ["kyutai-tts", "--model", str(release), "--config", str(release / "config.json")]


def load_kyutai_tts(release: Path) -> Speak:
    """Load the package moshi, which decodes each frame at once, as the authors' server does."""
    from moshi.models import loaders

    from plugins.kyutai.lab import kyutai_tts_replies

    config = json.loads((release / "config.json").read_text())
    has_vectors = bool(config["conditioners"])
    model = kyutai_tts_replies.load(release, 1.0 if has_vectors else GUIDANCE_SCALE)
    model.mimi = mimi = loaders.get_mimi(release / config["mimi_name"], num_codebooks=config["n_q"])
    conditions: dict[str, Any] = {"attributes": [], "prefixes": None}
    if has_vectors:
        (voice,) = release.glob(f"voices/{random_kyutai_tts.VOICES[0]}.*")
        conditions["attributes"] = [model.make_condition_attributes([voice], cfg_coef=GUIDANCE_SCALE)]
    else:
        conditions["prefixes"] = [model.get_prefix(release / "voices" / f"{KYUTAI_VOICE}.wav")]
    num_given = 0 if has_vectors else conditions["prefixes"][0].shape[1]

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
                    model.generate([model.prepare_script([KYUTAI_TEXT])], on_frame=decode, **conditions)
            finally:
                sizes.put(None)

        threading.Thread(target=generate, daemon=True).start()
        while (size := sizes.get()) is not None:
            yield size

    return speak


# ----- MOSS-TTS-Nano


def write_moss_tts_nano(folder: Path) -> list[str]:
    return random_moss_nano.command(random_moss_nano.write_release(folder, "published"))


def load_moss_tts_nano(release: Path) -> Speak:
    """Load a copy of OpenMOSS's classes, in float32, that always chooses a frame instead of the end."""
    from plugins.moss.lab import moss_tts_nano_replies as replies

    model: Any = replies.load("published", torch.float32)
    codec = replies.load_codec("published")
    tokenizer = replies.tokenizer_of(release)
    draw = model._sample_next_token
    is_slot = torch.zeros(1, dtype=torch.long)
    model._sample_next_token = lambda logits, **options: is_slot if logits.shape[-1] == 2 else draw(logits, **options)

    @torch.no_grad()
    def speak(frames: int) -> Iterator[int]:
        prompt, _ = model.build_inference_input_ids(TEXT, tokenizer)
        output = model.generate(prompt, max_new_frames=frames, do_sample=True)
        yield codec.batch_decode([output.audio_token_ids[0].T]).audio.shape[-1]

    return speak


# ----- families whose authors' code is not measured


def write_qwen3_tts(folder: Path) -> list[str]:
    release = str(random_qwen3_tts.write_release(folder, random_qwen3_tts.published_config()))
    codec = str(random_qwen3_codec.write_qwen3_codec(folder / "speech_tokenizer", "wide"))
    parts = ["--config", f"{release}/config.json", "--tokenizer", release, "--codec", codec]
    return ["qwen3-tts", "--model", release, *parts]


def chatterbox_turbo(sizes: random_chatterbox.Gpt2Sizes) -> Contender:
    """Return Chatterbox Turbo or Nano, which differ in the sizes of GPT-2."""
    layers = f"{sizes.num_layers} layers of {sizes.width}"
    return Contender(
        write=partial(written, "chatterbox", random_chatterbox.write_published_turbo, sizes=sizes),
        samples=960,
        voice="default",
        sizes=f"as published: GPT-2 {layers}; S3Gen with 2 steps, voice of 15 s for GPT-2 and of 3 s for S3Gen",
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 1 << 30},
        silent=NUM_SILENT,
    )


def write_magpie(folder: Path) -> list[str]:
    """Write Magpie TTS's model and codec to a folder; return the converter's arguments."""
    return random_magpie.command(random_magpie.write_release(folder, "published"))


magpie = partial(
    Contender,
    write=write_magpie,
    samples=2048,
    voice="ann",
    sizes="v2607, as published: decoder 12 layers of 768, local transformer 2 layers of 768, rows of two frames; codec",
    text="The garden door is open.",
    sample_rate=22_050,
)
ALONE = {
    "chatterbox_nano": chatterbox_turbo(random_chatterbox.PUBLISHED_NANO),
    "chatterbox_turbo": chatterbox_turbo(random_chatterbox.PUBLISHED_TURBO),
    "kyutai_stt": Contender(
        write=partial(written, "kyutai-stt", random_kyutai_stt.write_published),
        samples=1920,
        voice="",
        sizes="1B, as published: 16 layers of 2048, 32 codebooks; Mimi as published",
        engine={"max_model_len": 4096, "kv_cache_memory_bytes": 1 << 30},
    ),
    "magpie": magpie(),
    "magpie_unguided": magpie(options={"guidance_scale": 1.0}),
    "qwen3_tts": Contender(
        write=write_qwen3_tts,
        samples=1920,
        voice="ryan",
        sizes="0.6B, as published: 28 layers of 1024, depth 5 layers of 1024; codec as published",
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 1 << 30},
    ),
    "vibevoice_realtime": Contender(
        write=partial(written, "vibevoice-realtime", random_vibevoice_realtime.write_release, kind="published"),
        samples=3200,
        voice="en-ann_woman",
        sizes="0.5B, as published: Qwen2 24 layers of 896, diffusion head 4 layers; codec as published",
        text="Good luck.",
        rows_before=10,  # a token for each character
    ),
}

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
        write=partial(written, "pocket-tts", random_pocket.write_release, kind="published"),
        sizes="as published: language model 89.4 M parameters, codec 20.1 M; float32",
    ),
    **{
        f"pocket_tts_{size}": pocket_tts(
            write=partial(written, "pocket-tts", random_pocket.write_release, kind=f"published_{size}"),
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
    "moss_tts_nano": Contender(
        write=write_moss_tts_nano,
        load=load_moss_tts_nano,
        samples=3840,
        voice=None,
        sizes="as published: GPT-2 12 layers of 768, depth 1 layer of 768, 16 codebooks; codec as published; float32",
        engine={"max_model_len": 1024, "kv_cache_memory_bytes": 1 << 30},
        sample_rate=48_000,
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
