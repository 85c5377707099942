"""Conversion of MOSS-TTS-Realtime releases (`model_type` moss_tts_realtime), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer, is a
repository of its own, and has more codebooks than the model. The tables of text and of all codebooks become one. The
backbone's own table is not used by the authors' class. Of the depth transformer's tables and heads, only the rows of
codes are needed, and in the head of codebook 0 that of the end.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from stretto.errors import CheckpointError, shown
from stretto.family.base import DepthSpec
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    Tokenizer,
    common_record,
    concatenated,
    integer,
    merged,
    section,
)
from stretto.family.layers import layers_plan
from stretto.untrusted_files import check_value
from stretto.weights.backbones import LLAMA_NUMBERS
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_moss.moss_tts.convert import MAX_CODEBOOKS, MAX_CODES, MAX_EPS, MAX_THETA, qwen3_backbone
from stretto_moss.moss_tts.convert import trained_dtype as trained_dtype
from stretto_moss.moss_tts.family import MAX_MODEL_LEN
from stretto_moss.moss_tts_realtime.family import NUM_MARKERS, MossRealtimeVocabulary
from stretto_moss.moss_tts_realtime.recognise import MODEL_TYPE

BACKBONE = "language_model."
LOCAL = "local_transformer."
EMBEDDINGS = "embed_tokens.0.weight"
UNUSED = f"{BACKBONE}embed_tokens.weight"
HEAD = f"{LOCAL}local_lm_heads.0.weight"
MARKS = {HEAD: "MOSS-TTS-Realtime"}
# Values of the depth transformer that the authors' class has if config.json does not state them.
LOCAL_NUMBERS = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
MAX_SIZE = 1 << 16
MAX_LAYERS = 1 << 8
# Names of tokens, and the keys of config.json that have their ids, if there are any.
TOKENS = {
    "turn_start": ("<|im_start|>", None, 0),
    "turn_end": ("<|im_end|>", None, 0),
    "recorded": ("<|audio_pad|>", "reference_audio_pad", 151654),
    "text_pad": ("<|text_pad|>", "text_pad", 151655),
}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    backbone, known = read_config(contents.config, contents.tokenizer)
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: getattr(backbone, name) for name in LLAMA_NUMBERS if name != "mlp_bias"},
        **common_record("moss_tts_realtime", known, known.layout.vocab_size, contents),
    }
    return Converted(record, plan(backbone, known), (UNUSED,))


def read_config(record: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[Any, MossRealtimeVocabulary]:
    """Return the hyperparameters of the backbone, and the vocabulary.

    Args:
        record: config.json of a release.
        tokenizer: Tokenizer of the release.

    Raises:
        CheckpointError: A value is missing, invalid or not supported, or belongs to another model.
    """
    check_value("model_type", record.get("model_type"), MODEL_TYPE)
    language = section(record, "language_config")
    local = section(record, "local_config")
    backbone = qwen3_backbone(language)
    num_codebooks = integer(record, "rvq", MAX_CODEBOOKS, usual=16)
    size = integer(record, "audio_pad_token", MAX_CODES, usual=1024)
    expected_ids = {"audio_vocab_size": size + NUM_MARKERS, "rvq": num_codebooks}
    for place, values in (("", record), ("local_config.", local)):
        for name, value in (expected_ids | {"audio_pad_token": size}).items():
            if values.get(name, value) != value:
                raise CheckpointError(f"config.json: {place}{name}: expected {value}, got {shown(values[name])}")
    if num_codebooks < 2:
        raise CheckpointError(f"config.json: rvq: expected at least 2 codebooks, got {num_codebooks}")
    ids = tokenizer.ids_of([name for name, _, _ in TOKENS.values()], backbone.vocab_size)
    for name, key, usual in TOKENS.values():
        if key is not None and record.get(key, usual) != ids[name]:
            raise CheckpointError(f"config.json: {key}: expected {ids[name]} ({name}), got {shown(record.get(key))}")
    known = MossRealtimeVocabulary(
        num_text_ids=backbone.vocab_size,
        num_codebooks=num_codebooks,
        codebook_size=size,
        **{field: ids[name] for field, (name, _, _) in TOKENS.items()},
        max_model_len=min(MAX_MODEL_LEN, backbone.max_position_embeddings),
        depth=depth_spec(local, backbone.hidden_size),
    )
    return backbone, known


def depth_spec(local: Mapping[str, Any], width: int) -> DepthSpec:
    """Return the hyperparameters of the depth transformer.

    Args:
        local: `local_config` of config.json.
        width: Width of the backbone.

    Raises:
        CheckpointError: A value is invalid or not supported.
    """
    place = "local_config."
    numbers = {
        name: integer(local, name, MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE, usual=usual, place=place)
        for name, usual in LOCAL_NUMBERS.items()
    }
    rope = local.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: {place}rope_parameters: expected an object, got {shown(rope)}")
    theta = rope.get("rope_theta", local.get("rope_theta", 1e6))
    eps = local.get("rms_norm_eps", 1e-6)
    for name, value, most in (("rope_theta", theta, MAX_THETA), ("rms_norm_eps", eps, MAX_EPS)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
            raise CheckpointError(f"config.json: {place}{name}: expected a number in (0, {most:g}], got {shown(value)}")
    for name, value, allowed in (
        ("hidden_size", numbers["hidden_size"], (width,)),
        ("rope_type", local.get("rope_type", "linear"), ("linear", "default")),
        ("rope_parameters.rope_type", rope.get("rope_type", "linear"), ("linear", "default")),
        ("rope_parameters.factor", rope.get("factor", 1.0), (1.0,)),
        ("attention_bias", local.get("attention_bias", False), (False,)),
        ("hidden_act", local.get("hidden_act", "silu"), ("silu",)),
    ):
        if value not in allowed:
            expected = " or ".join(map(str, allowed))
            raise CheckpointError(f"config.json: {place}{name}: expected {expected}, got {shown(value)}")
    if numbers["num_attention_heads"] % numbers["num_key_value_heads"]:
        expected = f"a multiple of {numbers['num_key_value_heads']} (num_key_value_heads)"
        got = numbers["num_attention_heads"]
        raise CheckpointError(f"config.json: {place}num_attention_heads: expected {expected}, got {got}")
    return DepthSpec(
        hidden=numbers["hidden_size"],
        intermediate=numbers["intermediate_size"],
        num_layers=numbers["num_hidden_layers"],
        num_heads=numbers["num_attention_heads"],
        num_kv_heads=numbers["num_key_value_heads"],
        head_dim=numbers["head_dim"],
        eps=float(eps),
        rope={"rope_type": "default", "rope_theta": float(theta)},
        projection=None,
        has_head_norms=True,
        num_first=1,
    )


def plan(backbone: Any, known: MossRealtimeVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    width = backbone.hidden_size
    depth = known.depth
    size = known.codebook_size
    numbers = range(known.num_codebooks)
    table = (known.num_code_ids, depth.hidden)
    local = Qwen3Config(
        vocab_size=1,
        hidden_size=depth.hidden,
        intermediate_size=depth.intermediate,
        num_hidden_layers=depth.num_layers,
        num_attention_heads=depth.num_heads,
        num_key_value_heads=depth.num_kv_heads,
        head_dim=depth.head_dim,
    )
    tables = {EMBEDDINGS: (known.num_text_ids, width)}
    tables |= {f"embed_tokens.{number + 1}.weight": (known.num_code_ids, width) for number in numbers}

    def codes_of(*stored: Tensor) -> list[Tensor]:
        return [tensor[:size] for tensor in stored]

    return {
        **merged("model.embed_tokens.weight", concatenated, tables),
        **merged(
            "depth.embed",
            lambda *stored: torch.cat(codes_of(*stored)),
            {f"{LOCAL}model.embed_tokens.{number}.weight": table for number in numbers[:-1]},
        ),
        HEAD: Part("depth.first_head", table, lambda head: torch.cat([head[:size], head[-1:]])),
        **merged(
            "depth.heads",
            lambda *stored: torch.stack(codes_of(*stored)),
            {f"{LOCAL}local_lm_heads.{number}.weight": table for number in numbers[1:]},
        ),
        **layers_plan(shapes_of(Qwen3Model, backbone), BACKBONE),
        **layers_plan(shapes_of(Qwen3Model, local), f"{LOCAL}model.", "depth."),
    }
