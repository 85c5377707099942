"""Randomly initialised MOSS-TTS-Local v1.5 releases in OpenMOSS's layout: language model, tokenizer and codec.

    python -m plugins.moss.lab.random_moss_local FOLDER [KIND]

The codec, of two channels, is written next to the release, as `codec`. The kinds `small` and `deep` have few channels,
`served` has the published codebooks and codes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lab.releases.random_tensors import random_tensors
from plugins.moss.lab.random_moss import NUM_TEXT_IDS, NUM_TOKENS, ODD, TOKENS, qwen3_shapes, write_codec
from plugins.moss.lab.random_moss import SMALL as BACKBONE

KEYS = {"audio_assistant_gen_slot_token_id": "audio_assistant_slot_token_id"}  # named otherwise than in MOSS-TTS
IDS = {KEYS.get(key, key): at for at, key in enumerate(TOKENS, NUM_TOKENS) if key and "delay" not in key}
SMALL = BACKBONE | {"tie_word_embeddings": True}
DEEP = SMALL | {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
# Codebooks, codes of a codebook, backbone, and heads, inner width, layers and activation of the depth transformer.
KINDS: dict[str, tuple[int, int, dict[str, int], tuple[int, int, int, str]]] = {
    "small": (4, 16, SMALL, (4, 80, 1, "silu")),
    "deep": (6, 24, DEEP, (3, 128, 2, "gelu")),
    "odd": (4, 16, ODD | {"tie_word_embeddings": True}, (4, 80, 1, "silu")),
    "served": (12, 1024, SMALL, (4, 80, 1, "silu")),
}
FAVOUR = 0.55  # of a slot


def config(kind: str = "small", max_rows: int = 4096) -> dict[str, Any]:
    """Return the contents of config.json of a release."""
    num_codebooks, num_codes, backbone, (heads, inner, layers, activation) = KINDS[kind]
    language = {
        "model_type": "qwen3",
        **backbone,
        "vocab_size": NUM_TEXT_IDS,
        "max_position_embeddings": max_rows,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "attention_bias": False,
    }
    return {
        "architectures": ["MossTTSLocalModel"],
        "model_type": "moss_tts_local",
        "dtype": "float32",
        "qwen3_config": language,
        "language_config": language,
        "gpt2_config": {
            "model_type": "gpt2",
            "vocab_size": NUM_TEXT_IDS,
            "n_embd": backbone["hidden_size"],
            "n_head": heads,
            "n_inner": inner,
            "n_layer": layers,
            "activation_function": activation,
            "layer_norm_epsilon": 1e-6,
            "position_embedding_type": "rope",
            "rope_base": 10000.0,
            "scale_attn_weights": True,
        },
        "local_transformer_layers": layers,
        "local_text_head_mode": "binary",
        "n_vq": num_codebooks,
        "audio_vocab_size": num_codes,
        "audio_codebook_sizes": [num_codes] * num_codebooks,
        "audio_pad_token_id": num_codes,
        "sampling_rate": 48000,
        **IDS,
    }


def model_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of the language model."""
    lm = record["language_config"]
    local = record["gpt2_config"]
    width = record["language_config"]["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.embed_tokens.weight": (lm["vocab_size"], width)}
    shapes |= qwen3_shapes("transformer.", lm)
    shapes |= gpt2_shapes("local_transformer", local, local["n_layer"])
    table = record["audio_vocab_size"], width
    for name in ("audio_embeddings", "audio_lm_heads"):
        shapes |= {f"{name}.{number}.weight": table for number in range(record["n_vq"])}
    return shapes | {"text_lm_head.weight": (lm["vocab_size"], width), "local_text_lm_head.weight": (2, width)}


def gpt2_shapes(prefix: str, section: dict[str, Any], num_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of GPT-2's layers and final norm."""
    width = section["n_embd"]
    linear = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
    linear |= {"mlp.fc_in": (section["n_inner"], width), "mlp.fc_out": (width, section["n_inner"])}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (f"{prefix}.h.{number}" for number in range(num_layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        shapes |= {f"{layer}.{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return shapes | {f"{prefix}.ln_f.{kind}": (width,) for kind in ("weight", "bias")}


def model_tensors(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the published tensors of the language model, identical on every machine."""
    record = config(kind)
    found = random_tensors(model_shapes(record), seed=17)
    for number in range(record["n_vq"]):
        found[f"audio_embeddings.{number}.weight"] *= 0.5
        found[f"audio_lm_heads.{number}.weight"] = found[f"audio_embeddings.{number}.weight"]
    found["text_lm_head.weight"] = found["transformer.embed_tokens.weight"]
    for name in found:
        if name.endswith(("ln_1.bias", "ln_2.bias", "ln_f.bias")):
            found[name] = np.random.Generator(np.random.PCG64(len(name))).standard_normal(found[name].shape)
            found[name] = (0.1 * found[name]).astype(np.float32)
    # A slot is likely, so that replies have some frames.
    found["local_text_lm_head.weight"][0] += 10 * FAVOUR * found["local_transformer.ln_f.bias"]
    return found


def inputs() -> dict[str, np.ndarray]:
    """Return all tensors on which the fixture depends."""
    return {f"{kind}.{name}": each for kind in ("small", "deep") for name, each in model_tensors(kind).items()}


def write_release(folder: Path, kind: str = "small", max_rows: int = 4096) -> Path:
    """Write a release, and a codec release next to it; return the folder."""
    from lab.releases.random_espnet import write_tokenizer

    write_codec(folder.parent / "codec", kind, num_channels=2)
    write_tokenizer(folder, NUM_TOKENS + 7)
    record = json.loads((folder / "tokenizer.json").read_text())
    like = record["added_tokens"][0]
    names = enumerate(TOKENS.values(), NUM_TOKENS)
    record["added_tokens"] = [like | {"id": at, "content": name} for at, name in names]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    save_file(model_tensors(kind), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(kind, max_rows)))
    return folder


def command(folder: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    words = ["moss-tts-local", "--model", str(folder), "--config", f"{folder}/config.json"]
    return [*words, "--tokenizer", str(folder), "--codec", str(folder.parent / "codec")]


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), (sys.argv[2:] or ["small"])[0]))
