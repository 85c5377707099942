"""Models of published shape for speed measurements, with random weights that are created on the device.

Only config.json is written, as the converter writes it. In a dry run, the backbone is tiny, but streams and vocabulary
are as published.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engines import PROMPT_ROWS, forced_prompt
from benchmarks.gpu.jobs import Setup
from lab.releases.every_codec import every_codec
from stretto.config import EngineConfig
from stretto.convert.make_repository import ENGINE_GPU, Placement, gpu_needs
from stretto.families.qwen3_tts.family import DEPTH, Qwen3TtsVocabulary
from stretto.family.base import Family
from stretto.family.plugin import NAME, VOCABULARY, read_family
from stretto.machine.sizing import Needs
from stretto.records.prompt import Prompt
from stretto.weights.backbones import OLMO2_7B, QWEN3_8B, SMOLLM2_1_7B, config_of

DRY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
# Talker of https://huggingface.co/Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice.
QWEN3_TTS_1B7 = {
    "model_type": "qwen3",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
}
DRY_DEPTH = replace(DEPTH, hidden=64, intermediate=128, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=32)
COMPILED = {"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"}
PROMPTS = (10, 30, 200)  # rows of prompts: streamed text, a short and a long text
# Steps with prompts: the sizes to which a server pads these (steps of 8 up to 256, then of 16), and 512.
PROMPT_SIZES = (16, 32, 200, 256, 512)
# Engine arguments by name of the graphs, for `--engine-args` of `stretto make-repository`.
PIECES = "pieces"  # vLLM's default: steps with prompts consist of several graphs and attention without one
WHOLE = "whole"  # a graph for every step, for families without encoded inputs
PLAIN = "plain"  # without a compiler, and graphs only for steps without prompts
GRAPHS: dict[str, dict[str, Any]] = {
    PIECES: {"compilation_config": COMPILED},
    WHOLE: {"compilation_config": {**COMPILED, "cudagraph_mode": "FULL"}},
    PLAIN: {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
}


@dataclass(frozen=True)
class Model:
    """Family with its backbone.

    Attributes:
        scale: Guidance scale; 1 for a family without guidance.
        task: Task whose reply begins with audio.
        written: Task whose reply begins with text, or None.
        dry: Vocabulary for a dry run if the vocabulary contains model sizes; None for the published one.
    """

    family: str
    backbone: Mapping[str, Any]
    scale: float
    task: str
    written: str | None = None
    dry: Mapping[str, Any] | None = None

    @property
    def rows_per_request(self) -> int:
        """Rows per step: two for a guided reply, otherwise one."""
        return 1 if self.scale == 1.0 else 2

    def named(self, setup: Setup) -> dict[str, Any]:
        """Return the family's entries in config.json."""
        return {NAME: self.family, VOCABULARY: self.dry if setup.is_small else None}

    def read_family(self, setup: Setup) -> Family:
        """Return the family with the published vocabulary."""
        return read_family(self.named(setup))


MODELS = {
    "8b": Model("bagpiper", QWEN3_8B, 3.0, "speak", "tts"),
    "7b": Model("opuslm", OLMO2_7B, 1.0, "tts"),
    "1b7": Model("opuslm", SMOLLM2_1_7B, 1.0, "tts"),
    "qwen3_tts": Model("qwen3_tts", QWEN3_TTS_1B7, 1.0, "tts", dry=Qwen3TtsVocabulary(depth=DRY_DEPTH).to_record()),
}


def write_config(folder: Path, model: Model, setup: Setup) -> Path:
    """Write a folder that vLLM accepts as a checkpoint without weights."""
    backbone = {**model.backbone, **(DRY if setup.is_small else {})}
    family = model.read_family(setup)
    record = config_of(backbone, family.layout.vocab_size, "float32" if setup.is_small else "bfloat16")
    record["tie_word_embeddings"] = family.depth is not None  # a depth family's first head covers other ids
    (folder / "config.json").write_text(json.dumps(record | model.named(setup)))
    return folder


def needs_of(checkpoint: Path, family: Family, arguments: dict[str, Any]) -> Needs:
    """Return the memory that `make-repository --gpu` computes for a model with its published codec."""
    return gpu_needs(checkpoint, every_codec(family.codec, is_narrow=False), family, Placement(ENGINE_GPU), arguments)


def engine_config(
    checkpoint: Path,
    setup: Setup,
    model: Model,
    requests: tuple[int, ...],
    graphs: Mapping[str, Any] = GRAPHS[PIECES],
) -> EngineConfig:
    """Return an engine's configuration, with the memory that the other processes of a server leave on a GPU."""
    args = engine_args(setup, model, requests, graphs)
    needs = None if setup.is_small else needs_of(checkpoint, model.read_family(setup), args)
    return EngineConfig(checkpoint, args, reserved_mb=None if needs is None else needs.reserved_mb)


def engine_args(
    setup: Setup, model: Model, requests: tuple[int, ...], graphs: Mapping[str, Any] = GRAPHS[PIECES]
) -> dict[str, Any]:
    """Return vLLM arguments that fit all replies, guided or not, with graphs for all row counts and for prompts."""
    rows = sorted({factor * number for number in requests for factor in (1, model.rows_per_request)})
    args: dict[str, Any] = {
        "dtype": "float32" if setup.is_small else "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": rows[-1],
        "max_num_batched_tokens": 4096,
        "block_size": 32,
        "load_format": "dummy",
        "async_scheduling": True,
    }
    if setup.is_small:
        return {**args, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
    compilation = {**graphs["compilation_config"], "cudagraph_capture_sizes": sorted({*rows, *PROMPT_SIZES})}
    return {**args, **graphs, "compilation_config": compilation}


class PromptMaker:
    """Maker of random prompts that all differ, so that none finds the cached blocks of another."""

    def __init__(self, family: Family):
        self._family = family
        self._seeds = itertools.count()

    def make(
        self, number: int, task: str, scale: float, frames: int, text_rows: int, num_rows: int = PROMPT_ROWS
    ) -> list[Prompt]:
        """Return `number` prompts of `num_rows` rows, whose replies have a forced length."""
        family = self._family
        track = family.text_track
        options: dict[str, Any] = {
            "num_rows": num_rows,
            "ids": family.subwords,
            "stream": 0 if track is None else track.stream,
        }
        return [
            forced_prompt(family, family.task(task), next(self._seeds), frames, text_rows, scale, **options)
            for _ in range(number)
        ]
