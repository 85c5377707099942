"""Random releases of Kyutai TTS in the published layouts, with the oracle's weights (`random_kyutai_stt`).

They are small, except for `SIZES`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from plugins.kyutai.lab import random_kyutai_stt, random_moshi

# As kyutai/tts-0.75b-en-public: a text stream, a recording of the voice before the reply, guidance by pairs.
CONFIG: dict[str, Any] = {
    **random_moshi.CONFIG,
    "model_type": "tts",
    "moshi_name": "dsm_tts_d6ef30c7@1000.safetensors",
    "tokenizer_name": "tokenizer_spm_8k_en_fr_audio.model",
    "n_q": 8,
    "dep_q": 8,
    "context": 40,
    "depformer_dim_feedforward": 96,
    "delays": [0, 0, *[2] * 7],
    "conditioners": {},
    "fuser": {"sum": [], "cross": []},
    "tts_config": {"audio_delay": 0.4},
    "model_id": {"sig": "d6ef30c7", "epoch": 1000},
}
# As kyutai/tts-1.6b-en_fr: two text streams, vectors of voices and of guidance scales, tables of low rank, and weights
# of the depth transformer that groups of steps share.
LARGE: dict[str, Any] = {
    **CONFIG,
    "moshi_name": "dsm_tts_1e68beda@240.safetensors",
    "n_q": 12,
    "dep_q": 12,
    "context": 20,
    "delays": [0, 0, *[2] * 11],
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5],
    "depformer_low_rank_embeddings": 8,
    "demux_second_stream": True,
    "text_card_out": None,
    "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 16}},
        "cfg": {
            "type": "lut",
            "lut": {
                "n_bins": 7,
                "dim": 8,
                "tokenizer": "noop",
                "possible_values": ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"],
            },
        },
        "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 64, "tokenizer": "noop", "possible_values": ["ok"]}},
    },
    "fuser": {
        "cross_attention_pos_emb": True,
        "cross_attention_pos_emb_scale": 1,
        "sum": ["control", "cfg"],
        "prepend": [],
        "cross": ["speaker_wavs"],
    },
    "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2},
    "lm_gen_config": {"temp": 0.6, "text_temp": 0.6},
    "model_id": {"sig": "1e68beda", "epoch": 240},
}
# Fields of config.json that differ from `CONFIG` and `LARGE`. `1.6b` has the published values. config.json of the 0.75B
# was not available, so width and number of layers of `0.75b` are chosen to give as many parameters.
PUBLISHED: dict[str, Any] = {
    "hidden_scale": 4.125,
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 4,
    "depformer_dim_feedforward": 3072,
    "text_card": 8000,
    "card": 2048,
    "context": 500,
}
SIZES: dict[str, dict[str, Any]] = {
    "0.75b": {
        **PUBLISHED,
        "dim": 1024,
        "num_heads": 16,
        "num_layers": 24,
        "n_q": 16,
        "dep_q": 16,
        "delays": [0, 0, *[2] * 15],
        "depformer_weights_per_step_schedule": [*range(8), *[8] * 8],
        "tts_config": {"audio_delay": 1.28},
    },
    "1.6b": {
        **PUBLISHED,
        "dim": 2048,
        "num_heads": 16,
        "num_layers": 16,
        "n_q": 32,
        "dep_q": 32,
        "delays": [0, 0, *[2] * 31],
        "depformer_weights_per_step_schedule": [*range(8), *[8] * 8, *[9] * 8, *[10] * 8],
        "depformer_low_rank_embeddings": 128,
        "conditioners": {
            **LARGE["conditioners"],
            "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
            "cfg": {"type": "lut", "lut": {**LARGE["conditioners"]["cfg"]["lut"], "dim": 16}},
        },
    },
}
VOICES = ("expresso/ex03.wav", "vctk/P226.wav")
NUM_VECTORS = 6


def lm_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the language model's tensors by published name."""
    shapes = random_moshi.lm_shapes({**config, "dep_q": config["n_q"]})
    width = config["dim"]
    depth_width = config["depformer_dim"]
    shapes["text_linear.weight"] = config.get("text_card_out") or config["text_card"], width
    if config.get("demux_second_stream"):
        rank = config.get("depformer_low_rank_embeddings") or depth_width
        for number in (1, 2):
            shapes[f"text_emb.out{number}.weight"] = width, width
            shapes[f"depformer_text_emb.out{number}.weight"] = depth_width, rank
    for name, record in config["conditioners"].items():
        prefix = f"condition_provider.conditioners.{name}"
        kind = record[record["type"]]
        shapes[f"{prefix}.output_proj.weight"] = width, kind["dim"]
        shapes[f"{prefix}.learnt_padding"] = 1, 1, width
        if record["type"] == "lut":
            shapes[f"{prefix}.embed.weight"] = kind["n_bins"] + 1, kind["dim"]
    for layer in range(config["num_layers"] if config.get("cross_attention") else 0):
        prefix = f"transformer.layers.{layer}"
        shapes[f"{prefix}.cross_attention.in_proj_weight"] = 3 * width, width
        shapes[f"{prefix}.cross_attention.out_proj.weight"] = width, width
        shapes |= {f"{prefix}.norm_cross.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def write_release(folder: Path, seed: int = 7, base: dict[str, Any] = CONFIG, **changed: Any) -> Path:
    """Write a release.

    Args:
        folder: Folder to create.
        seed: Seed of the weights.
        base: Contents of config.json.
        **changed: Fields of config.json with other values.
    """
    config = {**base, **changed}
    random_kyutai_stt.write_parts(folder, config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: random_kyutai_stt.values(name, shape, seed) for name, shape in lm_shapes(config).items()}
    save_file(tensors, folder / config["moshi_name"])
    if config["conditioners"]:
        write_voices(folder / "voices", config)
    return folder


def write_published(folder: Path, size: str) -> Path:
    """Write a release of one of `SIZES`, with Mimi and the tokenizer of the published sizes."""
    base = {name: value for name, value in (CONFIG if size == "0.75b" else LARGE).items() if name != "mimi_config_name"}
    return write_release(folder, base=base, **SIZES[size])


def write_recording(path: Path, seconds: float) -> None:
    """Write noise at 24 kHz as a recording of a voice."""
    random = np.random.default_rng(15)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * random.standard_normal(round(24_000 * seconds)), 24_000, subtype="PCM_16")


def write_voices(folder: Path, config: dict[str, Any]) -> None:
    """Write the files of two voices, in folders of their own."""
    random = np.random.default_rng(14)
    model = config["model_id"]
    for name in VOICES:
        path = folder / f"{name}.{model['sig']}@{model['epoch']}.safetensors"
        path.parent.mkdir(parents=True)
        width = config["conditioners"]["speaker_wavs"]["tensor"]["dim"]
        shape = 1, width, 125 if width == 512 else NUM_VECTORS  # published: 125 vectors of 512 numbers
        vectors = random.standard_normal(shape).astype(np.float32)
        save_file({"speaker_wavs": torch.from_numpy(vectors)}, path)
