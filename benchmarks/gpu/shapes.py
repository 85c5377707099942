"""The model that throughput is measured with: Bagpiper's streams over a Qwen3 of 8B, or a tiny one for a dry run.

Only config.json is written: vLLM makes the weights up on the device (`load_format`: `dummy`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.families.bagpiper.family import BagpiperVocabulary, bagpiper

from benchmarks.gpu.sections import Setup

FAMILY = bagpiper(BagpiperVocabulary())
ARCHITECTURE = "Qwen3ForCausalLM"


@dataclass(frozen=True)
class Shape:
    """A backbone, the load on it, and how many requests at once."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    dtype: str
    requests: tuple[int, ...]
    text_rows: int
    frames: int
    rounds: int


EIGHT_B = Shape(4096, 36, 32, 8, 12_288, "bfloat16", (1, 4, 16, 32, 64), 48, 96, 2)
SMALL = Shape(64, 2, 2, 1, 128, "float32", (1, 2), 4, 40, 1)


def shape(setup: Setup) -> Shape:
    """8B on a GPU, tiny in a dry run."""
    return SMALL if setup.is_small else EIGHT_B


def write_config(folder: Path, chosen: Shape) -> Path:
    """A folder that vLLM takes for a checkpoint without weights."""
    config = {
        "architectures": [f"Stretto{ARCHITECTURE}"],
        "model_type": "qwen3",
        "speech_family": FAMILY.name,
        "vocab_size": FAMILY.layout.vocab_size,
        "hidden_size": chosen.hidden,
        "intermediate_size": chosen.inner,
        "num_hidden_layers": chosen.layers,
        "num_attention_heads": chosen.heads,
        "num_key_value_heads": chosen.kv_heads,
        "head_dim": chosen.hidden // chosen.heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "dtype": chosen.dtype,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


COMPILED = {"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"}
WITHOUT_COMPILER = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}


def engine_args(setup: Setup, with_compiler: bool = True) -> dict[str, Any]:
    """vLLM's arguments: all pairs at once, graphs for every number of rows that a run has."""
    chosen = shape(setup)
    rows = sorted({factor * number for number in chosen.requests for factor in (1, 2)})
    modes = COMPILED if with_compiler else WITHOUT_COMPILER
    compilation = {**modes, "cudagraph_capture_sizes": sorted({*rows, 48, 96})}
    return random_engine_args(setup, chosen.dtype, rows[-1], compilation)


def random_engine_args(setup: Setup, dtype: str, max_rows: int, compilation: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments for weights made on the device: `max_rows` rows in a step, graphs as `compilation` says."""
    args: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": 1024,
        "max_num_seqs": max_rows,
        "max_num_batched_tokens": 4096,
        "block_size": 32,
        "load_format": "dummy",
        "async_scheduling": True,
    }
    if setup.is_small:
        return {**args, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
    return {**args, "gpu_memory_utilization": 0.85, "compilation_config": compilation}
