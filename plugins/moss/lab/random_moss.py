"""Randomly initialised MOSS-TTS releases in OpenMOSS's layout: language model, tokenizer and codec.

    python -m plugins.moss.lab.random_moss FOLDER [KIND]

The codec is written next to the release, as `codec`. The kinds `small`, `deep` and `odd` have few channels, `served`
has the published codebooks and codes; a codec called `published` has the published sizes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lab.releases.random_tensors import random_tensors

FAVOUR = 0.15  # of the slot id
# tokens of the BPE, and ids with an embedding
NUM_TOKENS = 303
NUM_TEXT_IDS = 320
# Tokens after those of the BPE, by the keys of their ids in config.json; one is not used.
TOKENS = {
    "pad_token_id": "<|endoftext|>",
    "im_start_token_id": "<|im_start|>",
    "im_end_token_id": "<|im_end|>",
    "audio_start_token_id": "<|audio_start|>",
    "audio_end_token_id": "<|audio_end|>",
    "audio_user_slot_token_id": "<|audio_user_slot|>",
    "audio_assistant_gen_slot_token_id": "<|audio_assistant_gen_slot|>",
    "": "<|unused|>",
    "audio_assistant_delay_slot_token_id": "<|audio_assistant_delay_slot|>",
}
IDS = {key: at for at, key in enumerate(TOKENS, NUM_TOKENS) if key}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 32}
# heads with a size of their own, which do not divide the width
ODD = SMALL | {"hidden_size": 72, "num_attention_heads": 5, "num_key_value_heads": 1}
DEEP = SMALL | {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
# Codebooks, codes of a codebook, and the backbone.
KINDS: dict[str, tuple[int, int, dict[str, int]]] = {
    "small": (4, 16, SMALL),
    "deep": (6, 24, DEEP),
    "odd": (4, 16, ODD),
    "served": (32, 1024, SMALL),
}


def config(kind: str = "small", max_rows: int = 4096) -> dict[str, Any]:
    """Return the contents of config.json of a release."""
    num_codebooks, num_codes, backbone = KINDS[kind]
    section = backbone | {"vocab_size": NUM_TEXT_IDS, "max_position_embeddings": max_rows}
    return {
        "architectures": ["MossTTSDelayModel"],
        "model_type": "moss_tts_delay",
        "dtype": "float32",
        "language_config": {
            "model_type": "qwen3",
            **section,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        "n_vq": num_codebooks,
        "audio_vocab_size": num_codes,
        "audio_pad_code": num_codes,
        "sampling_rate": 24000,
        **IDS,
    }


def qwen3_shapes(prefix: str, section: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layers and the last norm of a Qwen3 model with this part of a config.json."""
    width = section["hidden_size"]
    inner = section["intermediate_size"]
    head = section["head_dim"]
    queries = section["num_attention_heads"] * head
    keys = section["num_key_value_heads"] * head
    own: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    layers = range(section["num_hidden_layers"])
    shapes = {f"{prefix}layers.{number}.{name}.weight": shape for number in layers for name, shape in own.items()}
    return shapes | {f"{prefix}norm.weight": (width,)}


def model_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of the language model."""
    lm = record["language_config"]
    width = record["language_config"]["hidden_size"]
    table = record["audio_vocab_size"] + 1, width
    shapes: dict[str, tuple[int, ...]] = {"language_model.embed_tokens.weight": (lm["vocab_size"], width)}
    shapes |= qwen3_shapes("language_model.", lm)
    shapes |= {f"emb_ext.{number}.weight": table for number in range(record["n_vq"])}
    shapes |= {f"lm_heads.{number + 1}.weight": table for number in range(record["n_vq"])}
    return shapes | {"lm_heads.0.weight": (lm["vocab_size"], width)}


def model_tensors(kind: str = "small") -> dict[str, np.ndarray]:
    """Return the published tensors of the language model, identical on every machine."""
    found = random_tensors(model_shapes(config(kind)), seed=11)
    for name in found:
        if name.startswith("emb_ext."):
            found[name] *= 0.5
    # The slot id is likely after the start and after itself, so that replies have some frames.
    start = IDS["audio_start_token_id"]
    slot = IDS["audio_assistant_gen_slot_token_id"]
    table = found["language_model.embed_tokens.weight"]
    head = found["lm_heads.0.weight"]
    table[[start, slot]] *= 3
    head[slot] += FAVOUR * (table[start] + table[slot])
    return found


def codec_config(kind: str = "small", num_channels: int = 1) -> dict[str, Any]:
    """Return the contents of config.json of a codec; `published` has the published sizes.

    With two channels, it is a codec of version 2, whose first patches are four times as long.
    """
    is_whole = kind == "published"
    num_codebooks, num_codes = (32, 1024) if is_whole else KINDS[kind][:2]
    wide, other, layers = ((1280, 20), (768, 12), (32, 12)) if is_whole else ((24, 3), (16, 2), (3, 1))

    def stage(inputs: int, outputs: int, is_first: bool = False) -> dict[str, Any]:
        width, heads = wide if is_first else other
        return {
            "module_type": "Transformer",
            "input_dimension": inputs,
            "output_dimension": outputs,
            "d_model": width,
            "num_heads": heads,
            "num_layers": layers[not is_first],
            "dim_feedforward": 4 * width,
            "causal": True,
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "max_period": 10000,
            "gating": "none",
            "layer_scale": 0.01,
            "conv_layout": True,
        }

    def patch(size: int) -> dict[str, Any]:
        return {"module_type": "PatchedPretransform", "patch_size": size}

    latent, half, narrow = (768, 640, 384) if is_whole else (12, 8, 8)
    first = 2 * half if is_whole else 16
    samples = 240 if num_channels == 1 else 960
    encoder = [
        patch(samples),
        stage(samples, narrow),
        patch(2),
        stage(2 * narrow, narrow),
        patch(2),
        stage(2 * narrow, half),
    ]
    encoder += [patch(2), stage(2 * half, latent, is_first=True)]
    decoder = [stage(latent, first, is_first=True), patch(2), stage(first // 2, 2 * narrow), patch(2)]
    decoder += [stage(narrow, 2 * narrow), patch(2), stage(narrow, samples), patch(samples)]
    channels = {"number_channels": 2, "enable_channel_interleave": True} if num_channels == 2 else {}
    return channels | {
        "model_type": "speech_tokenizer",
        "architectures": ["MossAudioTokenizerModel"],
        "version": "4.26.1.a",
        "sampling_rate": 24000 * num_channels,
        "sample_rate": 24000 * num_channels,
        "downsample_rate": 1920 * num_channels,
        "causal_transformer_context_duration": 10 if is_whole else 1,
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


def codec_shapes(record: dict[str, Any], keeps_square: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor of a codec.

    Args:
        keeps_square: True for projections even between equal widths, as in the authors' newer class.
    """
    shapes = dict[str, tuple[int, ...]]()
    for half in ("encoder", "decoder"):
        for number, part in enumerate(record[f"{half}_kwargs"]):
            if part["module_type"] == "Transformer":
                shapes |= dict(_stage_shapes(f"{half}.{number}", part, keeps_square))
    numbers = record["quantizer_kwargs"]
    width = numbers["rvq_dim"]
    narrow = numbers["codebook_dim"]
    projections = {"quantizer.input_proj": (width, numbers["input_dim"])}
    projections["quantizer.output_proj"] = (numbers["output_dim"], width)
    for number in range(numbers["num_quantizers"]):
        own = f"quantizer.quantizers.{number}"
        projections |= {f"{own}.in_proj": (narrow, width), f"{own}.out_proj": (width, narrow)}
        shapes[f"{own}.codebook.weight"] = (numbers["codebook_size"], narrow)
    for name, (outputs, inputs) in projections.items():
        shapes[f"{name}.bias"] = (outputs,)
        shapes[f"{name}.parametrizations.weight.original0"] = (outputs, 1, 1)
        shapes[f"{name}.parametrizations.weight.original1"] = (outputs, inputs, 1)
    return shapes


def _stage_shapes(name: str, part: dict[str, Any], keeps_square: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = part["d_model"]
    inner = part["dim_feedforward"]
    if part["input_dimension"] != width or keeps_square:
        yield f"{name}.input_proj.weight", (width, part["input_dimension"])
    if part["output_dimension"] != width or keeps_square:
        yield f"{name}.output_proj.weight", (part["output_dimension"], width)
    for number in range(part["num_layers"]):
        layer = f"{name}.transformer.layers.{number}"
        yield f"{layer}.self_attn.in_projs.0.weight", (3 * width, width)
        yield f"{layer}.self_attn.out_projs.0.weight", (width, width)
        yield f"{layer}.linear1.weight", (inner, width)
        yield f"{layer}.linear2.weight", (width, inner)
        for norm in ("norm1", "norm2"):
            yield f"{layer}.{norm}.weight", (width,)
            yield f"{layer}.{norm}.bias", (width,)
        for scale in ("layer_scale_1", "layer_scale_2"):
            yield f"{layer}.{scale}.scale", (width,)


def codec_tensors(kind: str = "small", num_channels: int = 1) -> dict[str, np.ndarray]:
    """Return the published tensors of a codec, identical on every machine, whose output is about as loud as speech."""
    return tensors_of_codec(codec_config(kind, num_channels))


def tensors_of_codec(record: dict[str, Any], keeps_square: bool = False) -> dict[str, np.ndarray]:
    """Return the published tensors of the codec with this config.json."""
    random = np.random.Generator(np.random.PCG64(5))
    found = dict[str, np.ndarray]()
    for name, shape in codec_shapes(record, keeps_square).items():
        noise = random.standard_normal(shape)
        if name.endswith(("scale", "original0")):
            noise = 0.5 + 0.1 * noise
        elif "norm" in name and name.endswith("weight"):
            noise = 1 + 0.1 * noise
        elif len(shape) == 1:
            noise *= 0.1
        elif not name.endswith("codebook.weight"):
            noise *= 0.8 / shape[1] ** 0.5
        found[name] = noise.astype(np.float32)
    last = len(record["decoder_kwargs"]) - 2
    found[f"decoder.{last}.output_proj.weight"] *= 0.2
    return found


def inputs() -> dict[str, np.ndarray]:
    """Return all tensors on which the fixture depends."""
    found = {f"{kind}.{name}": each for kind in ("small", "deep") for name, each in model_tensors(kind).items()}
    return found | {f"codec.{name}": each for name, each in codec_tensors().items()}


def write_codec(folder: Path, kind: str = "small", num_channels: int = 1) -> Path:
    """Write a codec release; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(codec_tensors(kind, num_channels), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(codec_config(kind, num_channels)))
    return folder


def write_release(folder: Path, kind: str = "small", max_rows: int = 4096) -> Path:
    """Write a release, and a codec release next to it; return the folder."""
    from lab.releases.random_espnet import write_tokenizer

    write_codec(folder.parent / "codec", kind)
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
    words = ["moss-tts", "--model", str(folder), "--config", f"{folder}/config.json", "--tokenizer", str(folder)]
    return [*words, "--codec", str(folder.parent / "codec")]


if __name__ == "__main__":
    print(write_release(Path(sys.argv[1]), (sys.argv[2:] or ["small"])[0]))
