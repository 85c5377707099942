"""Randomly initialised MOSS-TTS-Nano releases in OpenMOSS's layout: language model, tokenizer and codec.

    python -m plugins.moss.lab.random_moss_nano FOLDER [KIND]

The codec, of two channels, is written next to the release, as `codec`. The kinds `small` and `deep` have few channels,
`served` has the published codebooks and codes, `published` the published sizes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lab.releases.random_tensors import random_tensors, sentencepiece_model
from plugins.moss.lab.random_moss import tensors_of_codec
from plugins.moss.lab.random_moss_local import gpt2_shapes

WEIGHTS = "pytorch_model.bin"
TOKENS = (
    *("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>"),
    *("<|vision_pad|>", "<|video_pad|>", "<user_inst>"),
)
PUNCTUATION = "▁.,:;!?()'-_<>/"
NUM_TEXT_IDS = 128
KEYS = ("pad", "im_start", "im_end", "audio_start", "audio_end", "audio_user_slot", "audio_assistant_slot")
IDS = {f"{key}_token_id": at for at, key in enumerate(KEYS, 3)}
SMALL = {"n_embd": 64, "n_head": 2, "n_inner": 128, "n_layer": 2, "vocab_size": NUM_TEXT_IDS}
DEEP = SMALL | {"n_embd": 96, "n_head": 3, "n_inner": 160, "n_layer": 3, "activation_function": "gelu"}
ODD = SMALL | {"n_embd": 120, "n_head": 3, "n_inner": 83}
PUBLISHED = {"n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 12, "vocab_size": 16384}
# Codebooks, codes of a codebook, and gpt2_config.
KINDS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "small": (4, 16, SMALL),
    "deep": (6, 24, DEEP),
    "odd": (4, 16, ODD),
    "served": (16, 1024, SMALL),
    "published": (16, 1024, PUBLISHED),
}
FAVOUR = {"deep": 0.2}  # of a slot, by kind; 1 in others
# Inputs, outputs, layers and attention window in seconds of the encoder's transformers, as published and as small ones.
STAGES = ((240, 384, 4, 4.0), (768, 384, 2, 6.0), (768, 384, 2, 8.0), (768, 192, 4, 10.0))
SMALL_STAGES = ((240, 8, 2, 0.4), (16, 8, 1, 0.6), (16, 8, 1, 0.8), (16, 3, 2, 1.0))
PATCHES = (240, 2, 2, 2, 4)
# Parts of the names of the codec's tensors in the authors' newer class, by those of the older one.
NEWER = {".in_projs.0.": ".in_proj.", ".out_projs.0.": ".out_proj.", ".linear1.": ".ffn.0.", ".linear2.": ".ffn.2."}


def config(kind: str = "small", max_rows: int = 4096) -> dict[str, Any]:
    """Return the contents of config.json of a release."""
    num_codebooks, num_codes, section = KINDS[kind]
    return {
        "architectures": ["MossTTSNanoForCausalLM"],
        "model_type": "moss_tts_nano",
        "model_architecture": "global_local_transformer",
        "dtype": "float32",
        "gpt2_config": {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "position_embedding_type": "rope",
            "rope_base": 10000.0,
            "scale_attn_weights": True,
            "n_positions": max_rows,
            **section,
        },
        "local_transformer_layers": 1,
        "n_vq": num_codebooks,
        "audio_vocab_size": num_codes,
        "audio_codebook_sizes": [num_codes] * num_codebooks,
        "audio_pad_token_id": num_codes,
        "audio_tokenizer_sample_rate": 48000,
        "tokenizer_class": "MossTTSNanoSentencePieceTokenizer",
        **IDS,
    }


def model_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of the language model."""
    section = record["gpt2_config"]
    text = section["vocab_size"], section["n_embd"]
    table = record["audio_vocab_size"], section["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": text}
    shapes |= gpt2_shapes("transformer", section, section["n_layer"])
    for name in ("audio_embeddings", "audio_lm_heads"):
        shapes |= {f"{name}.{number}.weight": table for number in range(record["n_vq"])}
    shapes |= gpt2_shapes("local_transformer", section, record["local_transformer_layers"])
    return shapes | {"text_lm_head.weight": text}


def model_tensors(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the published tensors of the language model, identical on every machine."""
    record = config(kind)
    tensors = random_tensors(model_shapes(record), seed=19)
    for number in range(record["n_vq"]):
        tensors[f"audio_embeddings.{number}.weight"] *= 0.5
        tensors[f"audio_lm_heads.{number}.weight"] = tensors[f"audio_embeddings.{number}.weight"]
    for name, tensor in tensors.items():
        if ".ln_" in name and name.endswith(".weight"):
            tensors[name] = 1 + 0.2 * tensor
    tensors["transformer.wte.weight"] *= 0.5
    # A slot is likely, so that replies have some frames.
    bias = tensors["local_transformer.ln_f.bias"]
    tensors["transformer.wte.weight"][IDS["audio_assistant_slot_token_id"]] += FAVOUR.get(kind, 1.0) * bias
    tensors["text_lm_head.weight"] = tensors["transformer.wte.weight"]
    return tensors


def codec_config(kind: str = "small") -> dict[str, Any]:
    """Return the contents of config.json of a codec; `published` has the published sizes."""
    is_whole = kind == "published"
    num_codebooks, num_codes, _ = KINDS[kind]
    stages = STAGES if is_whole else SMALL_STAGES
    width, heads = (256, 4) if is_whole else (16, 2)
    latent = PATCHES[-1] * stages[-1][1]

    def stage(inputs: int, outputs: int, num_layers: int, window_s: float) -> dict[str, Any]:
        return {
            "module_type": "Transformer",
            "input_dimension": inputs,
            "output_dimension": outputs,
            "d_model": width,
            "num_heads": heads,
            "num_layers": num_layers,
            "dim_feedforward": 4 * width,
            "context_duration": window_s,
            "causal": True,
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "max_period": 10000,
            "gating": "none",
            "layer_scale": 0.01,
            "conv_layout": True,
        }

    patches = [{"module_type": "PatchedPretransform", "patch_size": size} for size in PATCHES]
    encoder = [patches[0]]
    decoder = [patches[0]]
    for patch, (inputs, outputs, num_layers, window_s) in zip(patches[1:], stages, strict=True):
        encoder += [stage(inputs, outputs, num_layers, window_s), patch]
        decoder = [patch, stage(outputs, inputs, num_layers, window_s), *decoder]
    return {
        "model_type": "moss-audio-tokenizer",
        "architectures": ["MossAudioTokenizerModel"],
        "sampling_rate": 48000,
        "sample_rate": 48000,
        "downsample_rate": 3840,
        "causal_transformer_context_duration": 10.0,
        "number_channels": 2,
        "enable_channel_interleave": True,
        "code_dim": latent,
        "encoder_kwargs": encoder,
        "decoder_kwargs": decoder,
        "quantizer_type": "rlfq",
        "quantizer_kwargs": {
            "input_dim": latent,
            "rvq_dim": 512 if is_whole else 10,
            "output_dim": latent,
            "num_quantizers": num_codebooks,
            "codebook_size": num_codes,
            "codebook_dim": 8 if is_whole else 4,
            "quantizer_type": "rlfq",
        },
        "dtype": "float32",
    }


def codec_tensors(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the published tensors of a codec, identical on every machine."""
    tensors = dict[str, np.ndarray]()
    for name, tensor in tensors_of_codec(codec_config(kind), keeps_square=True).items():
        for older, newer in NEWER.items():
            name = name.replace(older, newer)
        tensors[name] = tensor
    return tensors


def inputs() -> dict[str, np.ndarray]:
    """Return all tensors on which the fixture depends."""
    arrays = {f"{kind}.{name}": tensor for kind in ("small", "deep") for name, tensor in model_tensors(kind).items()}
    return arrays | {f"codec.{name}": tensor for name, tensor in codec_tensors().items()}


def write_tokenizer(folder: Path) -> None:
    """Write a unigram tokenizer with the published marks, letters and punctuation."""
    pieces = [*TOKENS, *PUNCTUATION, *map(chr, range(97, 123)), *map(chr, range(65, 91)), "the", "▁the", "▁a", "ing"]
    scored = [(piece, -1.0 - 0.001 * at) for at, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(scored, whole=TOKENS[4:]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MossTTSNanoSentencePieceTokenizer"}))


def write_codec(folder: Path, kind: str = "small") -> Path:
    """Write a codec release; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(codec_tensors(kind), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(codec_config(kind)))
    return folder


def write_release(folder: Path, kind: str = "small", max_rows: int = 4096) -> Path:
    """Write a release, and a codec release next to it; return the folder."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    write_codec(folder.parent / "codec", kind)
    write_tokenizer(folder)
    torch.save({name: torch.from_numpy(tensor) for name, tensor in model_tensors(kind).items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config(kind, max_rows)))
    return folder


def command(folder: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    words = ["moss-tts-nano", "--model", f"{folder}/{WEIGHTS}", "--config", f"{folder}/config.json"]
    return [*words, "--tokenizer", str(folder), "--codec", str(folder.parent / "codec")]


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), (sys.argv[2:] or ["small"])[0]))
