"""Randomly initialised Fish Audio S2 releases in the published layout: language model, tokenizer and codec.

    python -m plugins.fish_s2.lab.random_fish_s2 FOLDER [KIND]

The kinds `small` and `deep` have few channels and codes; `deep` has the published number of codebooks.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lab.releases.random_tensors import random_tensors

NUM_TOKENS = 303  # tokens of the BPE
MARKERS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|text|>", "<|voice|>", "<|audio_pad|>")
IDS = {name: at for at, name in enumerate((*MARKERS, "<|semantic:0|>"), NUM_TOKENS)}
NUM_SPARE = 2  # ids after the last token
SMALL = {"dim": 64, "intermediate_size": 128, "n_layer": 2, "n_head": 4, "n_local_heads": 2, "head_dim": 32}
DEEP = SMALL | {"dim": 96, "n_layer": 3, "n_head": 3, "n_local_heads": 3}
# Codebooks, codes of a codebook, backbone and depth transformer.
KINDS: dict[str, tuple[int, int, dict[str, int], dict[str, int]]] = {
    "small": (5, 64, SMALL, SMALL | {"n_layer": 1, "head_dim": 16}),
    "deep": (10, 64, DEEP, DEEP | {"n_head": 2, "n_local_heads": 1, "intermediate_size": 80}),
}
CODECS = {"small": "other", "deep": "small"}  # kinds of `random_fish_s2_codec` with these codebooks
END_SCALE = 1.5  # of the end's embedding, which is also its head, so that replies have some frames


def config(kind: str = "small", max_rows: int = 4096) -> dict[str, Any]:
    """Return the contents of config.json of a release."""
    num_codebooks, num_codes, backbone, fast = KINDS[kind]
    shared = {"attention_qkv_bias": False, "attention_o_bias": False, "norm_eps": 1e-6, "rope_base": 1000000}
    return {
        "model_type": "fish_qwen3_omni",
        "dtype": "float32",
        "text_config": {
            "model_type": "fish_qwen3",
            **backbone,
            **shared,
            "attention_qk_norm": True,
            "max_seq_len": max_rows,
            "tie_word_embeddings": True,
            "use_moe": False,
            "vocab_size": IDS["<|semantic:0|>"] + num_codes + NUM_SPARE,
        },
        "audio_decoder_config": {
            "model_type": "fish_qwen3_audio_decoder",
            **fast,
            **shared,
            "attention_qk_norm": False,
            "max_seq_len": num_codebooks + 1,
            "num_codebooks": num_codebooks,
            "text_dim": backbone["dim"],
            "tie_word_embeddings": False,
            "use_moe": False,
            "vocab_size": num_codes,
        },
        "audio_pad_token_id": IDS["<|audio_pad|>"],
        "eos_token_id": IDS["<|im_end|>"],
        "pad_token_id": IDS["<|pad|>"],
        "semantic_start_token_id": IDS["<|semantic:0|>"],
        "semantic_end_token_id": IDS["<|semantic:0|>"] + num_codes - 1,
    }


def _layer_shapes(prefix: str, section: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = section["dim"]
    inner = section["intermediate_size"]
    head = section["head_dim"]
    queries = section["n_head"] * head
    keys = section["n_local_heads"] * head
    own: dict[str, tuple[int, ...]] = {
        "attention.wqkv": (queries + 2 * keys, width),
        "attention.wo": (width, queries),
        "feed_forward.w1": (inner, width),
        "feed_forward.w3": (inner, width),
        "feed_forward.w2": (width, inner),
        "ffn_norm": (width,),
        "attention_norm": (width,),
    }
    if section["attention_qk_norm"]:
        own |= {"attention.q_norm": (head,), "attention.k_norm": (head,)}
    layers = range(section["n_layer"])
    shapes = {f"{prefix}layers.{number}.{name}.weight": shape for number in layers for name, shape in own.items()}
    return shapes | {f"{prefix}norm.weight": (width,)}


def model_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of the language model."""
    text = record["text_config"]
    fast = record["audio_decoder_config"]
    size = fast["vocab_size"]
    number = fast["num_codebooks"]
    return {
        "text_model.model.embeddings.weight": (text["vocab_size"], text["dim"]),
        **_layer_shapes("text_model.model.", text),
        "audio_decoder.codebook_embeddings.weight": (number * size, text["dim"]),
        "audio_decoder.embeddings.weight": (size, fast["dim"]),
        **_layer_shapes("audio_decoder.", fast),
        "audio_decoder.output.weight": (size, fast["dim"]),
    }


def model_tensors(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the published tensors of the language model, identical on every machine."""
    found = random_tensors(model_shapes(config(kind)), seed=17)
    found["text_model.model.embeddings.weight"][IDS["<|im_end|>"]] *= END_SCALE
    found["audio_decoder.output.weight"] *= 2  # a head
    return found


def write_release(folder: Path, kind: str = "small", max_rows: int = 4096) -> Path:
    """Write a release and return its folder."""
    from lab.releases.random_espnet import write_tokenizer
    from plugins.fish_s2.lab.random_fish_s2_codec import write_codec

    write_codec(folder, CODECS[kind])
    write_tokenizer(folder, NUM_TOKENS + 7)
    record = json.loads((folder / "tokenizer.json").read_text())
    like = record["added_tokens"][0]
    names = (*MARKERS, *(f"<|semantic:{code}|>" for code in range(KINDS[kind][1])))
    record["added_tokens"] = [like | {"id": at, "content": name} for at, name in enumerate(names, NUM_TOKENS)]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    save_file(model_tensors(kind), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(kind, max_rows)))
    return folder


def command(folder: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    words = ["fish-s2", "--model", str(folder), "--config", f"{folder}/config.json"]
    return [*words, "--tokenizer", str(folder)]


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), (sys.argv[2:] or ["small"])[0]))
