"""Random releases of Pocket TTS and Phonon in transformers' layout, with the weights of those in the authors'.

`tests/pocket_layouts_check.py` loads them with transformers' classes, which prove the names, the order and the configs.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from plugins.pocket.lab import random_phonon, random_pocket
from stretto_pocket.codec import PocketConfig
from stretto_pocket.phonon.convert_transformers import NAMES as PHONON_NAMES
from stretto_pocket.pocket_tts.convert_layout import NAMES, renamed
from stretto_pocket.pocket_tts.convert_transformers import NAMES as POCKET_NAMES
from stretto_pocket.pocket_tts.convert_transformers import PLACEHOLDERS

FUSED = ".in_proj.weight"


def differing_files(one: Path, other: Path) -> list[str]:
    """Return the names of the files of two checkpoints with different contents.

    The tokenizer is written anew if tokens are left out, and the codec's config of Pocket TTS has all fields of the
    authors' YAML file: they are compared as JSON, and as the codec's config.
    """
    names = {str(path.relative_to(root)) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    return sorted(name for name in names if _contents(one / name) != _contents(other / name))


def _contents(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_text())
    return PocketConfig.from_record(record["mimi"], record["has_encoder"]) if "mimi" in record else record


def in_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Return the rows [n, H] of a projection with adjacent pairs of each head as its halves."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def split(tensors: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], heads: int) -> dict[str, Tensor]:
    """Return tensors by transformers' names, with queries, keys and values apart.

    Args:
        tensors: Tensors by the authors' names.
        names: Beginnings of the authors' names and of transformers'.
        heads: Number of heads of all layers, each with keys and values of its own.
    """
    found = dict[str, Tensor]()
    for name, stored in tensors.items():
        other = renamed(name, names)
        if not name.endswith(FUSED):
            found[other] = stored
            continue
        query, key, value = stored.chunk(3)
        head_dim = len(query) // heads
        for letter, part in (("q", in_halves(query, head_dim)), ("k", in_halves(key, head_dim)), ("v", value)):
            found[other.replace(".q_proj.", f".{letter}_proj.")] = part
    return {name: stored.contiguous() for name, stored in found.items()}


def write_codec(folder: Path, mimi: Mapping[str, Any], tensors: Mapping[str, Tensor], has_encoder: bool) -> None:
    """Write a codec as `PocketTTSAudioTokenizerModel.save_pretrained` does.

    Args:
        folder: Folder to create.
        mimi: Section `mimi` of the YAML file of Pocket TTS.
        tensors: Its tensors by the authors' names.
        has_encoder: False to leave the encoder out.
    """
    seanet, stack = mimi["seanet"], mimi["transformer"]
    record = {
        "architectures": ["PocketTTSAudioTokenizerModel"],
        "model_type": "pocket_tts_audio_tokenizer",
        "sampling_rate": mimi["sample_rate"],
        "audio_channels": 1,
        "hidden_size": seanet["dimension"],
        "num_filters": seanet["n_filters"],
        "num_residual_layers": 1,
        "upsampling_ratios": seanet["ratios"],
        "kernel_size": seanet["kernel_size"],
        "last_kernel_size": seanet["last_kernel_size"],
        "residual_kernel_size": seanet["residual_kernel_size"],
        "dilation_growth_rate": seanet["dilation_base"],
        "use_causal_conv": True,
        "pad_mode": "constant",
        "compress": seanet["compress"],
        "trim_right_ratio": 1.0,
        "use_conv_shortcut": False,
        "upsample_groups": seanet["dimension"],
        "num_hidden_layers": stack["num_layers"],
        "intermediate_size": stack["dim_feedforward"],
        "num_attention_heads": stack["num_heads"],
        "num_key_value_heads": stack["num_heads"],
        "head_dim": stack["d_model"] // stack["num_heads"],
        "hidden_act": "gelu_pytorch_tanh",
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": stack.get("max_period", 10000.0)},
        "sliding_window": stack["context"],
        "attention_bias": False,
        "latent_stride": 16,
        "latent_dim": mimi["quantizer"]["dimension"],
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record if has_encoder else record | {"encoder_config": None}))
    ratios = len(seanet["ratios"])
    places = [
        (f"mimi.decoder.model.{2 + 3 * at}.convtr.", f"decoder.decoder_seanet.layers.{2 + 3 * at}.conv.")
        for at in range(ratios)
    ]
    found = split(tensors, (*places, *NAMES), stack["num_heads"])
    save_file(
        {name: stored for name, stored in found.items() if has_encoder or not name.startswith("encoder.")},
        folder / "model.safetensors",
    )


def language_model(lm: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """Return the config.json of a language model, given section `flow_lm` of Gradium's config.json."""
    width, heads = lm["d_model"], lm["num_heads"]
    return {
        "hidden_size": width,
        "num_hidden_layers": lm["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": lm["dim_feedforward"],
        "layer_norm_eps": 1e-5,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(lm["max_period"])},
        "latent_dim": random_pocket.NUM_WORDS,
        "frame_rate": 12.5,
        "flow_head_config": {
            "hidden_size": lm["flow_dim"],
            "num_hidden_layers": lm["flow_depth"],
            "latent_dim": random_pocket.NUM_WORDS,
            "condition_dim": width,
            "frequency_embedding_size": 2 * random_pocket.NUM_FREQUENCIES,
            "hidden_act": "silu",
            "layer_norm_eps": 1e-6,
            "rms_norm_eps": 1e-5,
            "flow_type": "lsd",
        },
        **others,
    }


def write_pocket(root: Path, has_encoder: bool = True) -> tuple[Path, Path, Path]:
    """Write Pocket TTS's small release twice; return the authors' folder, transformers' and that of its codec.

    In both, the text is changed by default, because transformers' layout does not have the changes.
    """
    authors, folder, codec = (root / name for name in ("authors", "transformers", "codec"))
    random_pocket.write_release(authors, clones=has_encoder)
    record = yaml.safe_load((authors / "config.yaml").read_text())
    del record["replace_characters"]
    (authors / "config.yaml").write_text(yaml.safe_dump(record))
    tensors = load_file(authors / "model.safetensors")
    mimi = {name: tensors.pop(name) for name in [*tensors] if name.startswith("mimi.")}
    write_codec(codec, record["mimi"], mimi, has_encoder)
    lm, flow, number = record["flow_lm"], record["flow_lm"]["flow"], random_pocket.NUM_TOKENS
    begin = tensors.pop("flow_lm.bos_before_voice")[0]
    table = tensors["flow_lm.conditioner.embed.weight"]
    tensors["flow_lm.conditioner.embed.weight"] = torch.cat(
        [table, torch.ones_like(begin), begin, torch.ones_like(begin)]
    )
    stack = lm["transformer"]
    shutil.copytree(authors / "embeddings", folder / "embeddings")
    flat = stack | {
        "dim_feedforward": stack["d_model"] * stack["hidden_scale"],
        "flow_dim": flow["dim"],
        "flow_depth": flow["depth"],
    }
    made = language_model(
        flat,
        architectures=["PocketTTSForConditionalGeneration"],
        model_type="pocket_tts",
        hidden_act="gelu_pytorch_tanh",
        vocab_size=number + len(PLACEHOLDERS),
        **{f"{name}_token_id": number + at for at, name in enumerate(PLACEHOLDERS)},
    )
    (folder / "config.json").write_text(json.dumps(made))
    (folder / "generation_config.json").write_text(json.dumps({"eos_threshold": record["default_eos_threshold"]}))
    tokenizer = json.loads((authors / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [
        {"id": number + at, "content": f"<|{name}|>", **flags} for at, name in enumerate(PLACEHOLDERS)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_file(split(tensors, (*POCKET_NAMES, *NAMES), stack["num_heads"]), folder / "model.safetensors")
    return authors, folder, codec


def write_phonon(root: Path, kind: str = "small", is_native: bool = True) -> tuple[Path, Path, Path]:
    """Write a release of Phonon twice; return Gradium's folder, transformers' and that of its codec.

    Args:
        root: Folder for the releases.
        kind: Kind of the release.
        is_native: False for Gradium's names of tensors, which `save_pretrained` writes by default.
    """
    authors, folder, codec = (root / name for name in ("authors", "transformers", "codec"))
    random_phonon.write_release(authors, kind)
    record, tensors = random_phonon.config(kind), load_file(authors / "model.safetensors")
    lm, mimi = record["flow_lm"], record["mimi"]
    stack = {
        name.removeprefix("transformer_"): value for name, value in mimi.items() if name.startswith("transformer_")
    }
    own = {name: tensors.pop(name) for name in [*tensors] if name.startswith("mimi.")}
    section = {
        "sample_rate": 24000,
        "seanet": random_pocket.SEANET,
        "transformer": stack,
        "quantizer": {"dimension": lm["ldim"]},
    }
    write_codec(codec, section, own, has_encoder=False)
    shutil.copytree(authors / "voices", folder / "voices")
    shutil.copy(authors / "tokenizer.json", folder)
    made = language_model(
        lm,
        architectures=["GradiumPhononTTSForConditionalGeneration"],
        model_type="gradium_phonon_tts",
        hidden_act="gelu",
        vocab_size=lm["n_bins"] + 1,
        audio_prompt_token_id=197,
        audio_latent_token_id=198,
        audio_bos_token_id=199,
        audio_prompt_dim=mimi["dimension"],
        num_speakers=1,
        num_speakers_vocab_size=random_phonon.NUM_SPEAKER_ROWS + 1,
        num_speakers_embedding_dim=random_phonon.SPEAKER_WIDTH,
        duration_delta=0.0,
        duration_delta_embedding_dim=random_phonon.DURATION_WIDTH,
    )
    (folder / "config.json").write_text(json.dumps(made))
    generation = {"eos_threshold": record["eos_threshold"], "num_flow_steps": record["lsd_decode_steps"]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tensors = {
        name: stored for name, stored in tensors.items() if not name.endswith("padding") and ".w_s_t." not in name
    }
    written = split(tensors, (*PHONON_NAMES, *NAMES), lm["num_heads"]) if is_native else tensors
    save_file({**written, "loss_weighting.proj.bias": torch.zeros(1)}, folder / "model.safetensors")
    return authors, folder, codec
