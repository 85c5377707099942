"""Kyutai's small random releases in transformers format, written by its classes.

They have the weights of those in the authors' format. Names and order of the weights are those of transformers' scripts
that converted the published releases.
"""

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    KyutaiSpeechToTextConfig,
    KyutaiSpeechToTextFeatureExtractor,
    KyutaiSpeechToTextForConditionalGeneration,
    KyutaiSpeechToTextProcessor,
    MoshiConfig,
    MoshiForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils import sentencepiece_model_pb2_new

from plugins.kyutai.lab import random_kyutai_stt, random_moshi
from plugins.kyutai.lab.random_kyutai_stt import MIMI, TEXT, random_words
from stretto.untrusted_files import json_object
from stretto.weights.loading import open_tensors, write_json
from stretto_kyutai.kyutai_stt.convert import MimiTensors

NORMS = {"norm1.alpha": "input_layernorm.weight", "norm2.alpha": "post_attention_layernorm.weight"}


def backbone(authors: Mapping[str, Tensor], num_layers: int, num_heads: int) -> dict[str, Tensor]:
    """Return the tensors of the layers and the final norm, by their name in transformers."""

    def in_halves(weight: Tensor) -> Tensor:
        """Return queries or keys for the rotation of halves of a head instead of adjacent pairs."""
        return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    found = {"norm.weight": authors["out_norm.alpha"].flatten()}
    for layer in range(num_layers):
        stored, own = f"transformer.layers.{layer}", f"layers.{layer}"
        queries, keys, values = authors[f"{stored}.self_attn.in_proj_weight"].chunk(3)
        found |= {
            f"{own}.self_attn.q_proj.linear.weight": in_halves(queries),
            f"{own}.self_attn.k_proj.linear.weight": in_halves(keys),
            f"{own}.self_attn.v_proj.linear.weight": values,
            f"{own}.self_attn.o_proj.linear.weight": authors[f"{stored}.self_attn.out_proj.weight"],
            f"{own}.mlp.fc1.weight": authors[f"{stored}.gating.linear_in.weight"],
            f"{own}.mlp.fc2.weight": authors[f"{stored}.gating.linear_out.weight"],
            **{f"{own}.{name}": authors[f"{stored}.{norm}"].flatten() for norm, name in NORMS.items()},
        }
    return found


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with a prefix of their names."""
    return {f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json that the backbones have in common."""
    return {
        "hidden_size": config["dim"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "ffn_dim": 2 * (2 * int(config["hidden_scale"] * config["dim"]) // 3),
        "sliding_window": config["context"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config["max_period"])},
    }


def train_pieces(folder: Path, num_tokens: int) -> Path:
    """Train a SentencePiece model of the published kind, and return its file in the folder."""
    path = folder / "unigram.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*TEXT * 4, *random_words(3 * num_tokens)]),
            model_writer=file,
            vocab_size=num_tokens,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            model_type="unigram",
            byte_fallback=num_tokens > 300,  # 256 of the tokens are bytes then
            minloglevel=2,
            num_threads=1,
        )
    return path


def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that transformers makes of a SentencePiece model."""
    converters = import_module("transformers.convert_slow_tokenizer")  # the package has a function of this name
    with mock.patch.object(converters, "import_protobuf", return_value=sentencepiece_model_pb2_new):
        # sentencepiece's own module needs a later version of protobuf
        made = converters.MoshiConverter(str(path)).converted()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def stt_model(authors: Path, config: Mapping[str, Any]) -> KyutaiSpeechToTextForConditionalGeneration:
    """Return transformers' model with the weights of a release in the authors' format."""
    num_text, num_codes, width = config["text_card"], config["card"] + 1, config["dim"]
    tensors = load_file(authors / config.get("moshi_name", "model.safetensors"))
    tables = [tensors["text_emb.weight"], *(tensors[f"emb.{k}.weight"] for k in range(config["n_q"]))]
    own = {"embed_tokens.embed_tokens.weight": torch.cat([*tables, torch.zeros(1, width)])}
    own |= backbone(tensors, config["num_layers"], config["num_heads"])
    mimi = MimiTensors(load_file(authors / config["mimi_name"]), MIMI.num_attention_heads)
    model = KyutaiSpeechToTextForConditionalGeneration(
        KyutaiSpeechToTextConfig(
            **sizes(config),
            vocab_size=num_text + 1,
            bos_token_id=num_text,
            codebook_vocab_size=num_codes,
            audio_bos_token_id=config["card"],
            num_codebooks=config["n_q"],
            audio_pad_token_id=num_text + 1 + config["n_q"] * num_codes,
            codec_config={**MIMI.to_dict(), "codebook_size": config["card"]},
        )
    )
    head = torch.cat([tensors["text_linear.weight"], torch.zeros(1, width)])
    model.load_state_dict(prefixed("model.", own) | prefixed("codec_model.", mimi) | {"lm_head.weight": head})
    return model.eval()


def write_stt(folder: Path, version: int = 5, **changed: Any) -> Path:
    """Write a Kyutai STT release in transformers format.

    Args:
        folder: Folder to create.
        version: Version of transformers. 4 writes the delays into the feature extractor's config instead of the
            processor's, and the base of the rotary embedding as a field of its own.
        changed: Fields of the authors' config.json.
    """
    config = {**random_kyutai_stt.CONFIG, **changed}
    with tempfile.TemporaryDirectory() as place:
        authors = random_kyutai_stt.write_release(Path(place), **changed)
        stt_model(authors, config).save_pretrained(folder)
        tokenizer = tokenizer_of(train_pieces(authors, config["text_card"]))
    features = KyutaiSpeechToTextFeatureExtractor(**config["stt_config"])
    if version == 5:
        KyutaiSpeechToTextProcessor(features, tokenizer).save_pretrained(folder)
        return folder
    tokenizer.save_pretrained(folder)
    features.save_pretrained(folder)
    saved = json_object(folder / "config.json")
    saved["rope_theta"] = saved.pop("rope_parameters")["rope_theta"]
    write_json(folder / "config.json", saved)
    return folder


def moshi_model(authors: Path, config: Mapping[str, Any]) -> MoshiForConditionalGeneration:
    """Return transformers' model with the weights of a release in the authors' format."""
    tensors, num_steps = load_file(authors / config["moshi_name"]), config["dep_q"]

    def of_steps(name: str) -> Tensor:
        return torch.stack([tensors[name.format(step)] for step in range(num_steps)])

    own = prefixed("decoder.model.", backbone(tensors, config["num_layers"], config["num_heads"]))
    own |= {f"embed_tokens.{k}.weight": tensors[f"emb.{k}.weight"] for k in range(config["n_q"])}
    own |= {"decoder.model.embed_tokens.weight": tensors["text_emb.weight"]}
    own |= {"decoder.lm_head.weight": tensors["text_linear.weight"]}
    depth = {f"embed_tokens.{k}.weight": tensors[f"depformer_emb.{k}.weight"] for k in range(num_steps - 1)}
    depth |= {"text_embed_tokens.weight": tensors["depformer_text_emb.weight"]}
    depth |= {"input_projections.weight": of_steps("depformer_in.{}.weight")}
    depth |= {"lm_heads.weight": of_steps("linears.{}.weight")}
    for layer in range(config["depformer_num_layers"]):
        stored, mine = f"depformer.layers.{layer}", f"layers.{layer}"
        fused = tensors[f"{stored}.self_attn.in_proj_weight"].unflatten(0, (num_steps, 3, -1))
        depth |= {f"{mine}.self_attn.{each}_proj.linear.weight": fused[:, at] for at, each in enumerate("qkv")}
        output = tensors[f"{stored}.self_attn.out_proj.weight"]
        depth[f"{mine}.self_attn.o_proj.linear.weight"] = output.unflatten(0, (num_steps, -1))
        depth[f"{mine}.mlp.fc1.weight"] = of_steps(f"{stored}.gating.{{}}.linear_in.weight")
        depth[f"{mine}.mlp.fc2.weight"] = of_steps(f"{stored}.gating.{{}}.linear_out.weight")
        depth |= {f"{mine}.{name}": tensors[f"{stored}.{norm}"].flatten() for norm, name in NORMS.items()}
    mimi = MimiTensors(load_file(authors / config["mimi_name"]), MIMI.num_attention_heads)
    model = MoshiForConditionalGeneration(
        MoshiConfig(
            **sizes(config),
            vocab_size=config["text_card"],
            audio_vocab_size=config["card"],
            num_codebooks=num_steps,
            audio_encoder_config={**MIMI.to_dict(), "codebook_size": config["card"]},
            depth_decoder_config={
                "hidden_size": config["depformer_dim"],
                "num_hidden_layers": config["depformer_num_layers"],
                "num_attention_heads": config["depformer_num_heads"],
                "ffn_dim": 2 * (2 * config["depformer_dim_feedforward"] // 3),
            },
        )
    )
    model.load_state_dict(own | prefixed("depth_decoder.", depth) | prefixed("audio_encoder.", mimi))
    return model.eval()


def write_moshi(folder: Path, **changed: Any) -> Path:
    """Write a Moshi release in transformers format; `changed` are fields of the authors' config.json."""
    config = {**random_moshi.CONFIG, **changed}
    with tempfile.TemporaryDirectory() as place:
        authors = random_moshi.write_release(Path(place), **changed)
        moshi_model(authors, config).save_pretrained(folder)
        tokenizer_of(train_pieces(authors, config["text_card"])).save_pretrained(folder)
    return folder


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    """Assert that two checkpoints and their codecs have equal configs and tensors, bit for bit."""
    for folder in (".", "codec"):
        assert json_object(one / folder / "config.json") == json_object(other / folder / "config.json")
        tensors, others = open_tensors(one / folder), open_tensors(other / folder)
        assert tensors.keys() == others.keys()
        for name in tensors:
            assert tensors[name].dtype == others[name].dtype, name
            assert torch.equal(tensors[name], others[name]), name
