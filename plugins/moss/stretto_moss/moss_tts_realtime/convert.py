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
from transformers import Qwen3Config, Qwen3ForCausalLM

from stretto.errors import CheckpointError, shown
from stretto.family.base import DepthSpec
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    Tokenizer,
    common_record,
    integer,
    merged_reader,
    section,
    unchanged,
)
from stretto.untrusted_files import check_value
from stretto.weights.backbones import LLAMA_NUMBERS
from stretto.weights.loading import Part, Plan, check, shapes_of
from stretto_moss.moss_tts.convert import MAX_CODEBOOKS, MAX_CODES, MAX_EPS, MAX_THETA, qwen3_backbone
from stretto_moss.moss_tts.convert import trained_dtype as trained_dtype
from stretto_moss.moss_tts.family import MAX_MODEL_LEN
from stretto_moss.moss_tts_realtime.family import NUM_MARKERS, MossRealtimeVocabulary
from stretto_moss.moss_tts_realtime.recognise import MODEL_TYPE

BACKBONE = "language_model."
LOCAL = "local_transformer."
EMBEDDINGS = "embed_tokens.0.weight"
UNUSED = f"{BACKBONE}embed_tokens.weight"
CODES = f"{LOCAL}model.embed_tokens.0.weight"
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
    shapes = published_shapes(backbone, known)
    dropped = {UNUSED: (known.num_text_ids, backbone.hidden_size)}
    check(unchanged(shapes), contents.tensors, (UNUSED,))
    found = contents.tensors.get(UNUSED)
    if found is not None and tuple(found.shape) != dropped[UNUSED]:
        raise CheckpointError(f"{UNUSED}: expected shape {list(dropped[UNUSED])}, got {list(found.shape)}")
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: getattr(backbone, name) for name in LLAMA_NUMBERS if name != "mlp_bias"},
        **common_record("moss_tts_realtime", known, known.layout.vocab_size, contents),
    }
    parts = plan(known, shapes, contents.tensors)
    folded = tuple(name for name in shapes if name not in parts)
    return Converted(record, parts, (UNUSED,), folded)


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


def published_shapes(backbone: Any, known: MossRealtimeVocabulary) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor that is needed, by name."""
    width = backbone.hidden_size
    depth = known.depth
    numbers = range(known.num_codebooks)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS: (known.num_text_ids, width)}
    shapes |= {f"embed_tokens.{number + 1}.weight": (known.num_code_ids, width) for number in numbers}
    own = shapes_of(Qwen3ForCausalLM, backbone)
    shapes |= {
        f"{BACKBONE}{name.removeprefix('model.')}": shape
        for name, shape in own.items()
        if name.startswith(("model.layers.", "model.norm."))
    }
    local = Qwen3Config(
        vocab_size=1,
        hidden_size=depth.hidden,
        intermediate_size=depth.intermediate,
        num_hidden_layers=depth.num_layers,
        num_attention_heads=depth.num_heads,
        num_key_value_heads=depth.num_kv_heads,
        head_dim=depth.head_dim,
    )
    shapes |= {
        f"{LOCAL}{name}": shape
        for name, shape in shapes_of(Qwen3ForCausalLM, local).items()
        if name.startswith(("model.layers.", "model.norm."))
    }
    table = known.num_code_ids, depth.hidden
    shapes |= {f"{LOCAL}model.embed_tokens.{number}.weight": table for number in numbers[:-1]}
    return shapes | {f"{LOCAL}local_lm_heads.{number}.weight": table for number in numbers}


def plan(known: MossRealtimeVocabulary, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors to write, by published name.

    Args:
        known: Vocabulary.
        shapes: Shapes of the published tensors by name.
        tensors: Published tensors by name.
    """
    size = known.codebook_size
    others = range(1, known.num_codebooks)
    read = merged_reader(tensors, shapes)
    second = f"{LOCAL}local_lm_heads.1.weight"

    def rows_of_all_ids(text: Tensor) -> Tensor:
        tables = (read(f"embed_tokens.{number + 1}.weight", text) for number in range(known.num_codebooks))
        return torch.cat([text, *tables])

    def rows_of_codes(first: Tensor) -> Tensor:
        tables = (read(f"{LOCAL}model.embed_tokens.{number}.weight", first)[:size] for number in others[:-1])
        return torch.cat([first[:size], *tables])

    def heads(first: Tensor) -> Tensor:
        rest = (read(f"{LOCAL}local_lm_heads.{number}.weight", first)[:size] for number in others[1:])
        return torch.stack([first[:size], *rest])

    parts = {
        EMBEDDINGS: Part("model.embed_tokens.weight", shapes[EMBEDDINGS], rows_of_all_ids),
        CODES: Part("depth.embed", shapes[CODES], rows_of_codes),
        HEAD: Part("depth.first_head", shapes[HEAD], lambda head: torch.cat([head[:size], head[-1:]])),
        second: Part("depth.heads", shapes[second], heads),
    }
    for name, shape in shapes.items():
        if name.startswith((f"{BACKBONE}layers.", f"{BACKBONE}norm.")):
            parts[name] = Part(f"model.{name.removeprefix(BACKBONE)}", shape)
        elif name.startswith((f"{LOCAL}model.layers.", f"{LOCAL}model.norm.")):
            within = name.removeprefix(f"{LOCAL}model.")
            parts[name] = Part("depth." + within.replace("self_attn.", "").replace("mlp.", ""), shape)
    return parts
