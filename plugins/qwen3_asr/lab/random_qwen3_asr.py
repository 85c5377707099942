"""Small random weights of Qwen3-ASR in the published layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lab.releases.random_qwen3_tts import SPECIAL, TEXT_IDS, backbone, layer_shapes, write_tokenizer
from lab.releases.random_tensors import random_tensors

PLACEHOLDERS = {"<|audio_start|>": 316, "<|audio_end|>": 317, "<|audio_pad|>": 318, "<asr_text>": 319}
LANGUAGES = ["Chinese", "English", "Cantonese"]
# Layers and width of the backbone, and layers and width of the audio encoder. As published, the 0.6B release has as
# many layers of the backbone as the 1.7B one, half its width, and a smaller encoder.
SIZES = {"1.7B": (3, 96, 3, 64), "0.6B": (3, 64, 2, 48)}


def config(size: str = "1.7B") -> dict[str, Any]:
    """Return config.json for a small release with the proportions of a published one."""
    layers, hidden, encoder_layers, encoder_hidden = SIZES[size]
    text = {
        "model_type": "qwen3_asr_text",
        **backbone(hidden, layers, 32),
        "tie_word_embeddings": True,
        "vocab_size": TEXT_IDS,
        "rope_scaling": {"interleaved": True, "mrope_section": [8, 4, 4], "rope_type": "default", "type": "default"},
    }
    audio = {
        "model_type": "qwen3_asr_audio_encoder",
        "num_mel_bins": 32,
        "encoder_layers": encoder_layers,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 2 * encoder_hidden,
        "d_model": encoder_hidden,
        "activation_function": "gelu",
        "max_source_positions": 1500,
        "n_window": 50,
        "n_window_infer": 800,
        "conv_chunksize": 500,
        "downsample_hidden_size": 8,
        "output_dim": hidden,
    }
    return {
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "model_type": "qwen3_asr",
        "support_languages": LANGUAGES,
        "thinker_config": {
            "model_type": "qwen3_asr",
            "audio_token_id": PLACEHOLDERS["<|audio_pad|>"],
            "audio_start_token_id": PLACEHOLDERS["<|audio_start|>"],
            "audio_end_token_id": PLACEHOLDERS["<|audio_end|>"],
            "text_config": text,
            "audio_config": audio,
        },
    }


def published_config(size: str) -> dict[str, Any]:
    """Return config.json with the numbers of a published release."""
    record = config(size)
    layers, width = {"0.6B": (18, 896), "1.7B": (24, 1024)}[size]
    hidden = {"0.6B": 1024, "1.7B": 2048}[size]
    heads = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    text = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "vocab_size": 151_936, **heads}
    audio = {"encoder_layers": layers, "d_model": width, "encoder_ffn_dim": 4 * width, "output_dim": hidden}
    audio |= {"encoder_attention_heads": width // 64, "num_mel_bins": 128, "downsample_hidden_size": 480}
    record["thinker_config"]["text_config"] |= text | {"max_position_embeddings": 65_536}
    record["thinker_config"]["audio_config"] |= audio
    record["thinker_config"]["audio_token_id"] = 151_676
    return record


def shapes(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    from stretto.weights.loading import shapes_of

    thinker = record["thinker_config"]
    text = thinker["text_config"]
    table = (text["vocab_size"], text["hidden_size"])
    encoder = shapes_of(Qwen3OmniMoeAudioEncoder, Qwen3OmniMoeAudioEncoderConfig(**thinker["audio_config"]))
    return {
        "thinker.model.embed_tokens.weight": table,
        "thinker.lm_head.weight": table,
        **layer_shapes("thinker.model.", text),
        **{f"thinker.audio_tower.{name}": shape for name, shape in encoder.items()},
    }


def tensors(record: Mapping[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """Return random float32 tensors by published name; the head is the table of embeddings.

    The rows of the audio encoder are larger than embeddings of text, so that replies depend on the recording. Half of
    the final norm is negative, so that a reply does not repeat its last id, and the ids that end it are likelier.
    """
    random = random_tensors(shapes(record), seed)
    random["thinker.audio_tower.proj2.weight"] *= 4
    random["thinker.model.norm.weight"][::2] *= -1
    embeddings = random["thinker.model.embed_tokens.weight"]
    embeddings[SPECIAL["<|im_end|>"]] *= 1.7
    embeddings[SPECIAL["<|endoftext|>"]] *= -1.3
    random["thinker.lm_head.weight"] = embeddings.copy()
    return random


def write_release(folder: Path, size: str = "1.7B", seed: int = 1, dtype: str = "float32") -> Path:
    """Write a release: weights in one file, configuration and tokenizer.

    Args:
        dtype: dtype of the tensors, such as `bfloat16`, in which releases are published.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    record = config(size)
    write_tokenizer(folder, SPECIAL | PLACEHOLDERS)
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens_decoder"][str(PLACEHOLDERS["<asr_text>"])]["special"] = False  # as published
    path.write_text(json.dumps(tokenizer))
    record["thinker_config"]["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(record | {"dtype": dtype}))
    random = {name: torch.from_numpy(tensor) for name, tensor in tensors(record, seed).items()}
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in random.items()}, folder / "model.safetensors")
    return folder


def command(release: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    return ["qwen3-asr", "--model", str(release), "--config", str(release / "config.json"), "--tokenizer", str(release)]
