"""Small random weights of Qwen3-Omni in the published layout: thinker, talker and code2wav."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lab.releases.random_qwen3_tts import (
    MARKERS,
    NUM_MARKERS,
    SPECIAL,
    TEXT_IDS,
    backbone,
    layer_shapes,
    write_tokenizer,
)
from lab.releases.random_tensors import random_tensors
from plugins.qwen3_omni.lab.random_code2wav import code2wav_record, code2wav_tensors

NAMES = ("pad_id", "bos_id", "eos_token_id", "nothink_id", "think_bos_id", "think_eos_id")
# placeholders for the thinker's audio, image and video input
AUDIO = 316
IMAGE = 317
VIDEO = 318
PLACEHOLDERS = {
    "<|audio_pad|>": AUDIO,
    "<|image_pad|>": IMAGE,
    "<|video_pad|>": VIDEO,
    "<|audio_start|>": 319,
    "<|audio_end|>": 320,
    "<|unused|>": 321,
    "<|vision_start|>": 322,
    "<|vision_end|>": 323,
}
ROLES = {"system": 321, "user": 266, "assistant": 263}


def small_config() -> dict[str, Any]:
    """Return config.json for a small release."""
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "enable_audio_output": True,
        "im_start_token_id": SPECIAL["<|im_start|>"],
        "im_end_token_id": SPECIAL["<|im_end|>"],
        "tts_pad_token_id": SPECIAL["<tts_pad>"],
        "tts_bos_token_id": SPECIAL["<tts_text_bos>"],
        "tts_eos_token_id": SPECIAL["<tts_text_eod>"],
        **{f"{name}_token_id": token for name, token in ROLES.items()},
        "thinker_config": thinker_config(),
        "talker_config": _talker(),
        "code2wav_config": code2wav_record(codebooks=4, codes=32),
    }


def text_only_config(thinker: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return config.json for a small release without a talker; None selects the usual `thinker_config`."""
    config = small_config() | {"enable_audio_output": False, "thinker_config": thinker or thinker_config()}
    return {name: value for name, value in config.items() if name not in ("talker_config", "code2wav_config")}


def thinker_config(hidden: int = 96, layers: int = 4, experts: int = 6, active: int = 2) -> dict[str, Any]:
    """Return the config of a small thinker, of whose experts `active` ones compute a row."""
    text = {
        **backbone(hidden, layers, 32),
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 0,
        "num_experts": experts,
        "num_experts_per_tok": active,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
        "vocab_size": TEXT_IDS,
        "rope_scaling": {"interleaved": True, "mrope_section": [8, 4, 4], "rope_type": "default", "type": "default"},
    }
    audio = {
        "model_type": "qwen3_omni_moe_audio_encoder",
        "num_mel_bins": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "activation_function": "gelu",
        "max_source_positions": 1500,
        "n_window": 50,
        "n_window_infer": 400,
        "conv_chunksize": 500,
        "downsample_hidden_size": 8,
        "output_dim": hidden,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_position_embeddings": 16,
    }
    vision |= {"out_hidden_size": hidden, "deepstack_visual_indexes": [0, 1], "patch_size": 4}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
    return {
        "audio_token_id": AUDIO,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "audio_start_token_id": PLACEHOLDERS["<|audio_start|>"],
        "audio_end_token_id": PLACEHOLDERS["<|audio_end|>"],
        "vision_start_token_id": PLACEHOLDERS["<|vision_start|>"],
        "vision_end_token_id": PLACEHOLDERS["<|vision_end|>"],
        "position_id_per_seconds": 13,
        "text_config": text,
        "audio_config": audio,
        "vision_config": vision,
    }


def _talker(
    hidden: int = 64, layers: int = 2, depth_layers: int = 2, codebooks: int = 4, codes: int = 32, experts: int = 6
) -> dict[str, Any]:
    text = {
        **backbone(hidden, layers, 32),
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": codes + NUM_MARKERS,
        "rope_scaling": {"interleaved": True, "mrope_section": [8, 4, 4], "rope_type": "default", "type": "default"},
    }
    return {
        "accept_hidden_layer": 3,  # above those to which the image encoder adds rows, as published
        "spatial_merge_size": 2,
        "position_id_per_seconds": 13,
        "audio_start_token_id": PLACEHOLDERS["<|audio_start|>"],
        "vision_start_token_id": PLACEHOLDERS["<|vision_start|>"],
        "num_code_groups": codebooks,
        "thinker_hidden_size": 96,
        "audio_token_id": AUDIO,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        **{f"codec_{name}": codes + MARKERS[name] for name in NAMES},
        "speaker_id": {"ethan": codes + 900, "chelsie": codes + 901},
        "text_config": text,
        "code_predictor_config": {
            **backbone(hidden, depth_layers, 16),
            "num_code_groups": codebooks,
            "vocab_size": codes,
            "rope_scaling": None,
            "layer_types": ["full_attention"] * depth_layers,
        },
    }


def _moe_layers(prefix: str, numbers: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of Qwen3 layers with experts, and perhaps a shared one, instead of a feed-forward network."""
    hidden, inner, shared = (
        numbers[name] for name in ("hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    )
    found = {name: shape for name, shape in layer_shapes(prefix, numbers).items() if ".mlp." not in name}
    for layer in range(numbers["num_hidden_layers"]):
        mlp = f"{prefix}layers.{layer}.mlp."
        found[f"{mlp}gate.weight"] = (numbers["num_experts"], hidden)
        sizes = {f"experts.{expert}": inner for expert in range(numbers["num_experts"])}
        if shared:
            found[f"{mlp}shared_expert_gate.weight"] = (1, hidden)
            sizes["shared_expert"] = shared
        for name, size in sizes.items():
            found |= {f"{mlp}{name}.{part}_proj.weight": (size, hidden) for part in ("gate", "up")}
            found[f"{mlp}{name}.down_proj.weight"] = (hidden, size)
    return found


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape, excluding code2wav."""
    return (talker_shapes(config) if "talker_config" in config else {}) | thinker_shapes(config)


def thinker_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape for the thinker."""
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

    from stretto.weights.loading import shapes_of

    thinker = config["thinker_config"]
    text = thinker["text_config"]
    table = text["vocab_size"], text["hidden_size"]
    found: dict[str, tuple[int, ...]] = {"thinker.model.embed_tokens.weight": table, "thinker.lm_head.weight": table}
    found |= _moe_layers("thinker.model.", text)
    audio = configs.Qwen3OmniMoeAudioEncoderConfig(**thinker["audio_config"])
    vision = configs.Qwen3OmniMoeVisionEncoderConfig(**thinker["vision_config"])
    towers = {"audio_tower": (models.Qwen3OmniMoeAudioEncoder, audio)}
    towers["visual"] = models.Qwen3OmniMoeVisionEncoder, vision
    for name, (kind, numbers) in towers.items():
        found |= {f"thinker.{name}.{tensor}": shape for tensor, shape in shapes_of(kind, numbers).items()}
    return found


def talker_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape for the talker and the thinker's embedding table."""
    talker = config["talker_config"]
    text = talker["text_config"]
    depth = talker["code_predictor_config"]
    hidden = text["hidden_size"]
    inner = text["intermediate_size"]
    thinker = talker["thinker_hidden_size"]
    found = _moe_layers("talker.model.", text) | layer_shapes("talker.code_predictor.model.", depth)
    found |= {
        "thinker.model.embed_tokens.weight": (config["thinker_config"]["text_config"]["vocab_size"], thinker),
        "talker.model.codec_embedding.weight": (text["vocab_size"], hidden),
        "talker.codec_head.weight": (text["vocab_size"], hidden),
    }
    for name in ("text", "hidden"):
        found |= {
            f"talker.{name}_projection.linear_fc1.weight": (inner, thinker),
            f"talker.{name}_projection.linear_fc1.bias": (inner,),
            f"talker.{name}_projection.linear_fc2.weight": (hidden, inner),
            f"talker.{name}_projection.linear_fc2.bias": (hidden,),
        }
    for k in range(talker["num_code_groups"] - 1):
        found[f"talker.code_predictor.model.codec_embedding.{k}.weight"] = (depth["vocab_size"], hidden)
        found[f"talker.code_predictor.lm_head.{k}.weight"] = (depth["vocab_size"], hidden)
    return found


def tensors(config: Mapping[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """Return random float32 tensors by published name.

    The rows of the audio encoder are larger than embeddings of text, so that replies depend on the recording.
    """
    drawn = random_tensors(shapes(config), seed)
    drawn["thinker.audio_tower.proj2.weight"] *= 4
    return drawn


def write_release(folder: Path, config: Mapping[str, Any] | None = None, seed: int = 1) -> Path:
    """Write a release: weights, index, configuration and tokenizer."""
    from safetensors.numpy import save_file

    config = config or small_config()
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, SPECIAL | PLACEHOLDERS)
    (folder / "config.json").write_text(json.dumps(config))
    drawn = tensors(config, seed)
    if "code2wav_config" in config:
        codec = code2wav_tensors(config["code2wav_config"])
        drawn |= {f"code2wav.{name}": tensor.numpy() for name, tensor in codec.items()}
    thinker = {name for name in drawn if name.startswith("thinker.")}
    weight_map: dict[str, str] = {}
    for number, names in enumerate((sorted(thinker), sorted(drawn.keys() - thinker)), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: drawn[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
