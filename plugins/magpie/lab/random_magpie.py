"""Randomly initialised Magpie TTS releases in the published layout: two `.nemo` archives.

    python -m plugins.magpie.lab.random_magpie FOLDER [KIND]

KIND is `small` (in the format of v2602), `stacked` (in that of v2607: several frames in a row, names of the voices) or
`published` (in that of v2607, at its size).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.releases.random_tensors import random_tensors
from plugins.magpie.lab.nemo_archive import write_nemo
from plugins.magpie.lab.random_nanocodec import KINDS as CODECS
from plugins.magpie.lab.random_nanocodec import write_codec
from plugins.magpie.lab.random_texts import FILES, LANGUAGES, TOKENIZERS
from stretto_magpie.convert_text import read_texts

MODEL = "magpie_tts_multilingual_357m.nemo"
CODEC = "nemo-nano-codec-22khz-1.89kbps-21.5fps.nemo"
SPEAKERS = "speakers.json"
NUM_SPECIAL = 8
STACK = {
    "d_model": 128,
    "d_ffn": 96,
    "sa_n_heads": 4,
    "p_dropout": 0.1,
    "max_length_causal_mask": 256,
    "is_causal": True,
    "apply_norm_out": True,
    "use_learnable_pos_emb": True,
}
INFERENCE = {"max_decoder_steps": 500, "temperature": 0.6, "topk": 80, "cfg_scale": 2.5}
WIDE_STACK = STACK | {"d_model": 768, "d_ffn": 3072, "sa_n_heads": 12, "max_length_causal_mask": 2048}
SHARED: dict[str, Any] = {
    "target": "nemo.collections.tts.models.magpietts.MagpieTTSModel",
    "model_type": "decoder_ce",
    "embedding_dim": 128,
    "codecmodel_path": "nvidia/nemo-nano-codec-22khz-1.89kbps-21.5fps",
    "local_transformer_type": "autoregressive",
    "text_tokenizers": TOKENIZERS,
    "prior_end_step": 0,
    "prior_scaledown_start_step": 0,
    "language_to_tokenizer_mapping": LANGUAGES,
    "inference_parameters": INFERENCE,
}
OF_V2607 = SHARED | {"frame_stacking_factor": 2, "speaker_map": f"nemo:{SPEAKERS}"}
KINDS: dict[str, dict[str, Any]] = {
    "small": SHARED
    | {
        "encoder": STACK | {"n_layers": 2, "kernel_size": 3},
        "decoder": STACK
        | {"n_layers": 2, "kernel_size": 1, "has_xattn": True, "xa_d_memory": 128, "xa_n_heads": 1, "xa_d_head": 32},
        "local_transformer_n_layers": 1,
        "local_transformer_n_heads": 1,
        "local_transformer_hidden_dim": 32,
    },
    "stacked": OF_V2607
    | {
        "encoder": STACK | {"n_layers": 1, "kernel_size": 5},
        "decoder": STACK
        | {"n_layers": 3, "kernel_size": 1, "has_xattn": True, "xa_d_memory": 128, "xa_n_heads": 2, "xa_d_head": 16},
        "local_transformer_n_layers": 2,
        "local_transformer_n_heads": 4,
        "local_transformer_hidden_dim": 128,
        "inference_parameters": INFERENCE
        | {
            "attention_prior_lookahead_window": 3,
            "estimate_alignment_from_layers": [0, 2],
            "apply_prior_to_layers": [1, 2],
        },
    },
    "published": OF_V2607
    | {
        "embedding_dim": 768,
        "encoder": WIDE_STACK | {"n_layers": 6, "kernel_size": 3},
        "decoder": WIDE_STACK
        | {"n_layers": 12, "kernel_size": 1, "has_xattn": True, "xa_d_memory": 768, "xa_n_heads": 1, "xa_d_head": 128},
        "local_transformer_n_layers": 2,
        "local_transformer_n_heads": 12,
        "local_transformer_hidden_dim": 768,
    },
}
CODEC_KINDS = {"small": "small", "stacked": "other", "published": "published"}
NAMES = {"Ann": 0, "Cid": 2, "Bob": 1}  # of the voices of `stacked`; those of `small` have the published names
VOICES = {"small": (5, 7), "stacked": (3, 4), "published": (3, 110)}  # voices, and rows of each
# Of the end id's heads, so that replies have some frames.
END_SCALE = 0.6
END_BIAS = {"small": 2.0, "stacked": 1.5, "published": 1.5}


def num_codes(kind: str) -> tuple[int, int]:
    """Return the number of codes of a row, and that of ids of each."""
    quantizer = CODECS[CODEC_KINDS[kind]]["vector_quantizer"]
    number = quantizer["num_groups"] * KINDS[kind].get("frame_stacking_factor", 1)
    return number, int(np.prod(quantizer["num_levels_per_group"])) + NUM_SPECIAL


def _layer_shapes(name: str, stack: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = stack["d_model"]
    inner = stack["d_ffn"]
    kernel = stack["kernel_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "norm_self.weight": (width,),
        "self_attention.causal_mask": (1, 1, 2, 2),
        "self_attention.qkv_net.weight": (3 * width, width),
        "self_attention.o_net.weight": (width, width),
        "norm_pos_ff.weight": (width,),
        "pos_ff.proj.conv.weight": (inner, width, kernel),
        "pos_ff.o_net.conv.weight": (width, inner, kernel),
    }
    if stack.get("has_xattn"):
        heads = stack["xa_n_heads"] * stack["xa_d_head"]
        shapes |= {
            "norm_xattn_query.weight": (width,),
            "norm_xattn_memory.weight": (width,),
            "cross_attention.q_net.weight": (heads, width),
            "cross_attention.kv_net.weight": (2 * heads, width),
            "cross_attention.o_net.weight": (width, heads),
        }
    return {f"{name}.layers.{at}.{own}": shape for at in range(stack["n_layers"]) for own, shape in shapes.items()}


def model_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of the model."""
    record = KINDS[kind]
    width = record["embedding_dim"]
    hidden = record["local_transformer_hidden_dim"]
    number, size = num_codes(kind)
    num_voices, num_rows = VOICES[kind]
    num_texts = read_texts(record, FILES.__getitem__)["size"] + 2
    local = {
        "n_layers": record["local_transformer_n_layers"],
        "d_model": hidden,
        "d_ffn": 4 * hidden,
        "kernel_size": 1,
    }
    shapes: dict[str, tuple[int, ...]] = {f"audio_embeddings.{at}.weight": (size, width) for at in range(number)}
    shapes |= {
        "text_embedding.weight": (num_texts, width),
        "baked_context_embedding.weight": (num_voices, num_rows * width),
    }
    for name in ("encoder", "decoder"):
        shapes |= _layer_shapes(name, record[name])
        shapes[f"{name}.position_embeddings.weight"] = (record[name]["max_length_causal_mask"], width)
        shapes[f"{name}.norm_out.weight"] = (width,)
    shapes |= {"final_proj.weight": (number * size, width), "final_proj.bias": (number * size,)}
    if hidden != width:
        shapes |= {
            "local_transformer_in_projection.weight": (hidden, width),
            "local_transformer_in_projection.bias": (hidden,),
        }
    shapes |= _layer_shapes("local_transformer", local)
    shapes["local_transformer.position_embeddings.weight"] = (number + 2, hidden)
    for at in range(number):
        shapes[f"local_transformer_out_projections.{at}.weight"] = (size, hidden)
        shapes[f"local_transformer_out_projections.{at}.bias"] = (size,)
    return shapes


def model_tensors(kind: str) -> dict[str, torch.Tensor]:
    """Return the published tensors of the model, identical on every machine."""
    tensors = random_tensors(model_shapes(kind), seed=75)
    size = num_codes(kind)[1]
    end = size - NUM_SPECIAL + 1
    for name, tensor in tensors.items():
        if "conv" in name:
            tensor *= tensor.shape[1] ** -0.5
        if "cross_attention.q_net" in name or "kv_net" in name:
            tensor *= 1.5  # so that some tokens get clearly more attention than others
        if name.startswith(("final_proj", "local_transformer_out")):
            of_codes = tensor.reshape(-1, size, *tensor.shape[1:])
            of_codes[:, end] = END_BIAS[kind] if name.endswith("bias") else of_codes[:, end] * END_SCALE
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def write_release(folder: Path, kind: str = "small") -> Path:
    """Write a release and return its folder."""
    num_voices, num_rows = VOICES[kind]
    sizes = {
        "_baked_embedding_T": torch.tensor(num_rows),
        "_baked_embedding_D": torch.tensor(KINDS[kind]["embedding_dim"]),
        "baked_context_embedding_len": torch.full((num_voices,), num_rows),
    }
    files = {name: text.encode() for name, text in FILES.items()}
    if "speaker_map" in KINDS[kind]:
        files[SPEAKERS] = json.dumps(NAMES).encode()
    write_nemo(folder / MODEL, KINDS[kind], model_tensors(kind) | sizes, files)
    write_codec(folder / CODEC, CODEC_KINDS[kind])
    return folder


def command(folder: Path) -> list[str]:
    """Return the converter's arguments for a release, without `--out`."""
    return ["magpie", "--model", str(folder / MODEL), "--codec", str(folder / CODEC)]


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), (sys.argv[2:] or ["small"])[0]))
