"""Random weights of Qwen3-TTS in the published layout, identical on every machine; most of them are small.

The weights need only `random_tensors.py` and numpy; `write_release` adds a tokenizer.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lab.releases.random_tensors import random_tensors

NUM_MARKERS = 1024  # ids after the codes in the codec's vocabulary, which the authors' code never samples
TEXT_IDS = 330
ROOM = 1000  # additional text ids before the special tokens
SPECIAL = {
    "<|endoftext|>": 310,
    "<|im_start|>": 311,
    "<|im_end|>": 312,
    "<tts_pad>": 313,
    "<tts_text_bos>": 314,
    "<tts_text_eod>": 315,
}
NAMED = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "tts_pad": "<tts_pad>",
    "tts_bos": "<tts_text_bos>",
    "tts_eos": "<tts_text_eod>",
}
PAIRS = "a s, as s, i s, t a, n t, ass is, ta nt, assis tant, u s, e r, us er, h e, l l, he ll, hell o, Ġ w, a B"
MERGES = tuple((first, second) for first, _, second in (pair.partition(" ") for pair in PAIRS.split(", ")))
# Offsets after the codes of the codec's vocabulary.
MARKERS = {
    "pad_id": 100,
    "bos_id": 101,
    "eos_token_id": 102,
    "think_id": 106,
    "nothink_id": 107,
    "think_bos_id": 108,
    "think_eos_id": 109,
}
SPEAKER = {
    "mel_dim": 128,
    "enc_channels": [16, 16, 16, 16, 48],
    "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1],
    "enc_attention_channels": 8,
    "enc_res2net_scale": 4,
    "enc_se_channels": 8,
    "sample_rate": 24000,
}


def small_config(
    kind: str = "custom_voice",
    hidden: int = 64,
    depth_hidden: int = 64,
    layers: int = 3,
    depth_layers: int = 2,
    codebooks: int = 4,
    codes: int = 32,
) -> dict[str, Any]:
    """Return config.json for a small release. If the widths differ, the depth transformer's input is projected."""
    talker = {
        **backbone(hidden, layers, 32),
        "num_code_groups": codebooks,
        "vocab_size": codes + NUM_MARKERS,
        "text_vocab_size": TEXT_IDS,
        "text_hidden_size": 48,
        "rope_scaling": {"interleaved": True, "mrope_section": [8, 4, 4], "rope_type": "default", "type": "default"},
        **{f"codec_{name}": codes + place for name, place in MARKERS.items()},
        "codec_language_id": {"chinese": codes + 7, "english": codes + 2, "sichuan_dialect": codes + 14},
        "spk_id": {"ryan": codes + 900, "eric": codes + 901} if kind == "custom_voice" else {},
        "spk_is_dialect": {"ryan": False, "eric": "sichuan_dialect"} if kind == "custom_voice" else {},
        "code_predictor_config": {
            **backbone(depth_hidden, depth_layers, 16),
            "num_code_groups": codebooks,
            "vocab_size": codes,
            "rope_scaling": None,
            "layer_types": ["full_attention"] * depth_layers,
        },
    }
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": "1b7",
        "tts_model_type": kind,
        **{f"{name}_token_id": SPECIAL[token] for name, token in NAMED.items()},
        "talker_config": talker,
        **({"speaker_encoder_config": {"enc_dim": hidden, **SPEAKER}} if kind == "base" else {}),
    }


def proportioned_config() -> dict[str, Any]:
    """Return config.json for a release with the proportions of the 0.6B model.

    It is a quarter as wide as published. It has 4 of 28 layers, and its depth transformer has 1 of 5. Codes, codebooks
    and head width are as published. There are few text ids.
    """
    config = small_config(hidden=256, depth_hidden=256, layers=4, depth_layers=1, codebooks=16, codes=2048)
    talker = config["talker_config"]
    for part in (talker, talker["code_predictor_config"]):
        part |= {"intermediate_size": 768, "head_dim": 128, "max_position_embeddings": 2048}
    talker["rope_scaling"]["mrope_section"] = [24, 20, 20]
    talker["text_hidden_size"] = 512
    talker["text_vocab_size"] = ROOM + TEXT_IDS
    return config | {f"{name}_token_id": ROOM + SPECIAL[token] for name, token in NAMED.items()}


def published_config() -> dict[str, Any]:
    """Return config.json for a release of the size of the 0.6B model, whose tokenizer has few words."""
    config = small_config(hidden=1024, depth_hidden=1024, layers=28, depth_layers=5, codebooks=16, codes=2048)
    talker = config["talker_config"]
    for part in (talker, talker["code_predictor_config"]):
        part |= {"intermediate_size": 3072, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8}
    talker["max_position_embeddings"] = 32_768
    talker["rope_scaling"]["mrope_section"] = [24, 20, 20]
    talker["text_hidden_size"] = 2048
    talker["text_vocab_size"] = 151_936
    return config


def backbone(hidden: int, layers: int, head_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 512,
        "use_sliding_window": False,
    }


def layer_shapes(prefix: str, numbers: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, width = (numbers[name] for name in ("hidden_size", "intermediate_size", "head_dim"))
    queries = numbers["num_attention_heads"] * width
    keys = numbers["num_key_value_heads"] * width
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(numbers["num_hidden_layers"]):
        attention = f"{prefix}layers.{layer}.self_attn."
        mlp = f"{prefix}layers.{layer}.mlp."
        found |= {
            f"{attention}{name}_proj.weight": (rows, hidden)
            for name, rows in zip("qkv", (queries, keys, keys), strict=True)
        }
        found[f"{attention}o_proj.weight"] = (hidden, queries)
        found |= {f"{attention}{name}_norm.weight": (width,) for name in "qk"}
        found |= {f"{mlp}{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{mlp}down_proj.weight"] = (hidden, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"{prefix}layers.{layer}.{name}.weight": (hidden,) for name in norms}
    return found | {f"{prefix}norm.weight": (hidden,)}


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by published name for a config.json, without the speaker encoder."""
    talker = config["talker_config"]
    depth = talker["code_predictor_config"]
    hidden = talker["hidden_size"]
    text = talker["text_hidden_size"]
    inner = depth["hidden_size"]
    others = talker["num_code_groups"] - 1
    found = layer_shapes("talker.model.", talker) | layer_shapes("talker.code_predictor.model.", depth)
    found |= {
        "talker.model.text_embedding.weight": (talker["text_vocab_size"], text),
        "talker.model.codec_embedding.weight": (talker["vocab_size"], hidden),
        "talker.text_projection.linear_fc1.weight": (text, text),
        "talker.text_projection.linear_fc1.bias": (text,),
        "talker.text_projection.linear_fc2.weight": (hidden, text),
        "talker.text_projection.linear_fc2.bias": (hidden,),
        "talker.codec_head.weight": (talker["vocab_size"], hidden),
    }
    for k in range(others):
        found[f"talker.code_predictor.model.codec_embedding.{k}.weight"] = (depth["vocab_size"], hidden)
        found[f"talker.code_predictor.lm_head.{k}.weight"] = (depth["vocab_size"], inner)
    if inner != hidden:
        found["talker.code_predictor.small_to_mtp_projection.weight"] = (inner, hidden)
        found["talker.code_predictor.small_to_mtp_projection.bias"] = (inner,)
    return found


def tensors(config: Mapping[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    return random_tensors(shapes(config), seed)


def write_tokenizer(folder: Path, special: Mapping[str, int] = SPECIAL, words: Iterable[str] = ()) -> None:
    """Write a byte-level BPE tokenizer: vocab.json, merges.txt, and special tokens in tokenizer_config.json.

    Args:
        special: Ids by special token.
        words: Words that become single tokens. A word may begin with a space, written `Ġ`.
    """
    from tokenizers import models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = dict.fromkeys([*(pair for word in words for pair in _chain(word)), *MERGES])
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    for unused in range(len(vocabulary), min(special.values())):  # special tokens come last
        vocabulary[f"unused{unused}"] = unused
    models.BPE(vocab=vocabulary, merges=list(merges)).save(str(folder))
    added = {str(token_id): {"content": name, "special": True} for name, token_id in special.items()}
    record = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(record))


def _chain(word: str) -> list[tuple[str, str]]:
    """Return the merges that turn a word into a single token."""
    return [(word[:end], word[end]) for end in range(1, len(word))]


def plain_ids(text: str) -> list[int]:
    """Return the ids of an ASCII text, one per character, if it contains nothing that the tokenizer merges."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index("Ġ" if character == " " else character) for character in text]


def write_release(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    seed: int = 1,
    words: Iterable[str] = (),
    is_half: bool = False,
) -> Path:
    """Write a release without its codec: weights, configuration and tokenizer.

    Args:
        config: Contents of config.json; None for `small_config`.
        words: Words that become single tokens (`write_tokenizer`).
        is_half: True to write bfloat16 as published, which needs torch; otherwise float32.
    """
    from safetensors.numpy import save_file

    config = config or small_config()
    folder.mkdir(parents=True, exist_ok=True)
    named = {token: config[f"{name}_token_id"] for name, token in NAMED.items()}
    write_tokenizer(folder, {"<|endoftext|>": min(named.values()) - 1, **named}, words)
    (folder / "config.json").write_text(json.dumps(config))
    drawn = tensors(config, seed)
    if config["tts_model_type"] == "base":
        from lab.releases.random_qwen3_codec import speaker_tensors

        speaker = speaker_tensors(config["speaker_encoder_config"])
        drawn |= {f"speaker_encoder.{name}": tensor.numpy() for name, tensor in speaker.items()}
    if is_half:
        import torch
        from safetensors.torch import save_file as save_tensors

        halves = {name: torch.from_numpy(drawn.pop(name)).bfloat16() for name in [*drawn]}
        save_tensors(halves, folder / "model.safetensors")
    else:
        save_file(drawn, folder / "model.safetensors")
    return folder


def write_with_codec(folder: Path, kind: str = "custom_voice") -> Path:
    """Write a small release with all files of a published one."""
    from lab.releases.random_qwen3_codec import write_qwen3_codec

    write_release(folder, small_config(kind, codebooks=16, codes=2048))
    (folder / "generation_config.json").write_text("{}")
    write_qwen3_codec(folder / "speech_tokenizer", "small")
    return folder
