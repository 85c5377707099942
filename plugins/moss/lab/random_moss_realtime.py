"""Randomly initialised MOSS-TTS-Realtime releases in OpenMOSS's layout: language model, tokenizer and codec.

    python -m plugins.moss.lab.random_moss_realtime FOLDER [KIND]

The codec is written next to the release, as `codec`; it has more codebooks than the model. The kinds `small` and `deep`
have few channels, `served` has the published codebooks and codes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lab.releases.random_tensors import random_tensors
from plugins.moss.lab.random_moss import NUM_TEXT_IDS, NUM_TOKENS, ODD, qwen3_shapes, write_codec

# Tokens after those of the BPE; two are not used.
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unused|>", "<|audio_pad|>", "<|text_pad|>")
IDS = {name: at for at, name in enumerate(TOKENS, NUM_TOKENS)}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 32}
DEEP = SMALL | {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
# Codebooks, codes of a codebook, backbone and depth transformer.
KINDS: dict[str, tuple[int, int, dict[str, int], dict[str, int]]] = {
    "small": (3, 16, SMALL, SMALL | {"num_hidden_layers": 1, "head_dim": 16}),
    "deep": (5, 24, DEEP, DEEP | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 80}),
    "odd": (3, 16, ODD, SMALL | {"num_hidden_layers": 1, "head_dim": 16, "hidden_size": 72}),
    "served": (16, 1024, SMALL, SMALL),
}
END_SCALE = 0.7  # of the head of the end, so that replies have some frames


def config(kind: str = "small", max_rows: int = 4096) -> dict[str, Any]:
    """Return the contents of config.json of a release."""
    num_codebooks, num_codes, backbone, local = KINDS[kind]
    shared = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False}
    codes = {"rvq": num_codebooks, "audio_vocab_size": num_codes + 3, "audio_pad_token": num_codes}
    return {
        "architectures": ["MossTTSRealtime"],
        "model_type": "moss_tts_realtime",
        "dtype": "float32",
        "language_config": {
            "model_type": "qwen3",
            **backbone,
            **shared,
            "vocab_size": NUM_TEXT_IDS,
            "max_position_embeddings": max_rows,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": False,
        },
        "local_config": {
            "model_type": "moss_tts_realtime_local_transformer",
            **local,
            **shared,
            **codes,
            "pad_token_id": num_codes,
            "max_position_embeddings": 33,
            "rope_theta": 1000000,
            "rope_type": "linear",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1000000, "factor": 1.0},
        },
        **codes,
        "reference_audio_pad": IDS["<|audio_pad|>"],
        "text_pad": IDS["<|text_pad|>"],
        "initializer_range": 0.02,
    }


def model_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of the language model."""
    lm = record["language_config"]
    local = record["local_config"]
    size = record["audio_vocab_size"]
    text = (lm["vocab_size"], lm["hidden_size"])
    numbers = range(record["rvq"])
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.0.weight": text}
    shapes |= {f"embed_tokens.{number + 1}.weight": (size, lm["hidden_size"]) for number in numbers}
    shapes |= {"language_model.embed_tokens.weight": text, **qwen3_shapes("language_model.", lm)}
    inner = "local_transformer.model."
    shapes |= {f"{inner}embed_tokens.{number}.weight": (size, local["hidden_size"]) for number in numbers[:-1]}
    shapes |= qwen3_shapes(inner, local)
    heads = "local_transformer.local_lm_heads."
    return shapes | {f"{heads}{number}.weight": (size, local["hidden_size"]) for number in numbers}


def model_tensors(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the published tensors of the language model, identical on every machine."""
    found = random_tensors(model_shapes(config(kind)), seed=13)
    for name in found:
        if "embed_tokens." in name and not name.endswith(".0.weight"):
            found[name] *= 0.5
    found["local_transformer.local_lm_heads.0.weight"][-1] *= END_SCALE
    return found


def inputs() -> dict[str, np.ndarray]:
    """Return all tensors on which the fixture depends."""
    return {f"{kind}.{name}": each for kind in ("small", "deep") for name, each in model_tensors(kind).items()}


def write_release(folder: Path, kind: str = "small", max_rows: int = 4096) -> Path:
    """Write a release, and a codec release next to it; return the folder."""
    from lab.releases.random_espnet import write_tokenizer

    write_codec(folder.parent / "codec", kind)
    write_tokenizer(folder, NUM_TOKENS + 7)
    record = json.loads((folder / "tokenizer.json").read_text())
    like = record["added_tokens"][0]
    record["added_tokens"] = [like | {"id": at, "content": name} for name, at in IDS.items()]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    save_file(model_tensors(kind), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(kind, max_rows)))
    return folder


def command(folder: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    words = ["moss-tts-realtime", "--model", str(folder), "--config", f"{folder}/config.json"]
    return [*words, "--tokenizer", str(folder), "--codec", str(folder.parent / "codec")]


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), (sys.argv[2:] or ["small"])[0]))
