"""Conversion of MOSS-TTS-Local-Transformer v1.5 releases (`model_type` moss_tts_local), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer v2, is
a repository of its own. The tables of text and of all codebooks become one. The heads of the codebooks are copies of
their tables, and may be missing. If the head that decides between a frame and the end is missing, it is made of two
rows of the table of text. The depth transformer's rotations pair neighbouring features; its queries and keys are
reordered, so that feature i is paired with feature i + D / 2.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Model

from stretto.errors import CheckpointError, shown
from stretto.family.base import DepthSpec
from stretto.family.conversion import Contents, Converted, Release, common_record, concatenated, integer, merged
from stretto.family.layers import layers_plan
from stretto.untrusted_files import check_value
from stretto.weights.backbones import LLAMA_NUMBERS, dtype_of
from stretto.weights.loading import Part, Plan, Shape, shapes_of
from stretto_moss.moss_tts.convert import MAX_CODEBOOKS, MAX_CODES, MAX_EPS, MAX_THETA, qwen3_backbone
from stretto_moss.moss_tts.family import MAX_MODEL_LEN
from stretto_moss.moss_tts_local.family import Gpt2Spec, LocalVocabulary
from stretto_moss.moss_tts_local.recognise import MODEL_TYPE
from stretto_moss.moss_tts_realtime.convert import MAX_LAYERS, MAX_SIZE

BACKBONE = "transformer."
LOCAL = "local_transformer."
EMBEDDINGS = f"{BACKBONE}embed_tokens.weight"
TEXT_HEAD = "text_lm_head.weight"
COPIES = "audio_lm_heads."
BINARY_HEAD = "local_text_lm_head.weight"
MARKS = {f"{LOCAL}h.0.attn.c_attn.weight": "MOSS-TTS-Local"}
# Ids of the vocabulary by their keys in config.json, and the values of a release that does not state them.
IDS = {
    "pad": ("pad_token_id", 151643),
    "turn_start": ("im_start_token_id", 151644),
    "turn_end": ("im_end_token_id", 151645),
    "audio_start": ("audio_start_token_id", 151669),
    "audio_end": ("audio_end_token_id", 151670),
    "recorded": ("audio_user_slot_token_id", 151654),
    "slot": ("audio_assistant_slot_token_id", 151656),
}
# values of `local_text_head_mode`
BINARY = "binary"
WHOLE = "full_vocab"
ACTIVATIONS = ("silu", "gelu")


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype of the release, or of its language model if only that is stated."""
    section = language_section(config)
    return dtype_of(config) or (dtype_of(section) if isinstance(section, Mapping) else None)


def language_section(config: Mapping[str, Any]) -> Any:
    """Return the section of the backbone, which config.json has under two names."""
    return config.get("qwen3_config", config.get("language_config"))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    backbone, known = read_config(contents.config)
    contents.tokenizer.ids_of((), known.num_text_ids)
    check_copies(contents.tensors, known.num_codebooks)
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: getattr(backbone, name) for name in LLAMA_NUMBERS if name != "mlp_bias"},
        **common_record("moss_tts_local", known, known.layout.vocab_size, contents),
    }
    return Converted(record, plan(backbone, known, has_binary_head(contents.config)), (TEXT_HEAD, COPIES))


def has_binary_head(record: Mapping[str, Any]) -> bool:
    """Return True if a head of its own chooses between a slot and the end; raise CheckpointError for other values."""
    mode = str(record.get("local_text_head_mode", BINARY))
    if mode not in (BINARY, WHOLE):
        raise CheckpointError(f"config.json: local_text_head_mode: expected {BINARY} or {WHOLE}, got {shown(mode)}")
    return mode == BINARY


def read_config(record: Mapping[str, Any]) -> tuple[Any, LocalVocabulary]:
    """Return the hyperparameters of the backbone, and the vocabulary.

    Args:
        record: config.json of a release.

    Raises:
        CheckpointError: A value is missing, invalid or not supported, or belongs to another model.
    """
    check_value("model_type", record.get("model_type"), MODEL_TYPE)
    section: Any = language_section(record)
    local: Any = record.get("gpt2_config")
    for name, value in (("language_config", section), ("gpt2_config", local)):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"config.json: {name}: expected an object, got {shown(value)}")
    backbone = qwen3_backbone(section)
    num_codebooks = integer(record, "n_vq", MAX_CODEBOOKS, usual=12)
    size = integer(record, "audio_vocab_size", MAX_CODES, usual=1024)
    sizes = record.get("audio_codebook_sizes") or [size] * num_codebooks
    if sizes != [size] * num_codebooks:
        expected = f"{num_codebooks} times {size}"
        raise CheckpointError(f"config.json: audio_codebook_sizes: expected {expected}, got {shown(sizes)}")
    if num_codebooks < 2:
        raise CheckpointError(f"config.json: n_vq: expected at least 2 codebooks, got {num_codebooks}")
    ids = {name: integer(record, key, backbone.vocab_size - 1, usual=usual) for name, (key, usual) in IDS.items()}
    if len({*ids.values()}) < len(ids):
        raise CheckpointError(f"config.json: expected {len(ids)} different ids of text tokens, got {ids}")
    known = LocalVocabulary(
        num_text_ids=backbone.vocab_size,
        num_codebooks=num_codebooks,
        codebook_size=size,
        **ids,
        max_model_len=min(MAX_MODEL_LEN, backbone.max_position_embeddings),
        depth=depth_spec(record, local, backbone.hidden_size),
    )
    return backbone, known


def depth_spec(record: Mapping[str, Any], local: Mapping[str, Any], width: int) -> Gpt2Spec:
    """Return the hyperparameters of the depth transformer.

    Args:
        record: config.json of a release.
        local: Its `gpt2_config`.
        width: Width of the backbone.

    Raises:
        CheckpointError: A value is invalid or not supported.
    """
    place = "gpt2_config."

    def size(name: str, usual: int, most: int = MAX_SIZE) -> int:
        return integer(local, name, most, usual=usual, place=place)

    hidden = size("n_embd", 768)
    heads = size("n_head", 12)
    inner = 4 * hidden if local.get("n_inner") is None else size("n_inner", 4 * hidden)
    num_layers = integer(record, "local_transformer_layers", MAX_LAYERS, usual=size("n_layer", 12, MAX_LAYERS))
    theta = local.get("rope_base", 1e4)
    eps = local.get("layer_norm_epsilon", 1e-5)
    for name, value, most in (("rope_base", theta, MAX_THETA), ("layer_norm_epsilon", eps, MAX_EPS)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
            raise CheckpointError(f"config.json: {place}{name}: expected a number in (0, {most:g}], got {shown(value)}")
    for name, usual, allowed in (
        ("n_embd", 768, (width,)),
        ("position_embedding_type", "absolute", ("rope",)),
        ("activation_function", "gelu_new", ACTIVATIONS),
        ("scale_attn_weights", True, (True,)),
        ("scale_attn_by_inverse_layer_idx", False, (False,)),
    ):
        if (found := local.get(name, usual)) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise CheckpointError(f"config.json: {place}{name}: expected {expected}, got {shown(found)}")
    if hidden % (2 * heads):
        raise CheckpointError(f"config.json: {place}n_head: expected heads of an even size, got {hidden} / {heads}")
    return Gpt2Spec(
        hidden=hidden,
        intermediate=inner,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        eps=float(eps),
        rope={"rope_type": "default", "rope_theta": float(theta)},
        projection=None,
        num_first=2,
        gpt2_activation=local["activation_function"],
    )


def local_shapes(depth: DepthSpec) -> dict[str, Shape]:
    """Return the shapes of the depth transformer's layers and final norm, by published name."""
    width = depth.hidden
    linear = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
    linear |= {"mlp.fc_in": (depth.intermediate, width), "mlp.fc_out": (width, depth.intermediate)}
    shapes: dict[str, Shape] = {}
    for layer in (f"{LOCAL}h.{number}." for number in range(depth.num_layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        shapes |= {f"{layer}{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return shapes | {f"{LOCAL}ln_f.{kind}": (width,) for kind in ("weight", "bias")}


def check_copies(tensors: Mapping[str, Tensor], num_codebooks: int) -> None:
    """Raise CheckpointError unless the heads of the codebooks equal their tables, as in the authors' class."""
    for number in range(num_codebooks):
        head = f"{COPIES}{number}.weight"
        table = f"audio_embeddings.{number}.weight"
        if head in tensors and table in tensors and not torch.equal(tensors[head], tensors[table]):
            raise CheckpointError(f"{head}: expected a copy of {table}, got other numbers")


def paired_by_half(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder the features of heads [heads * D, ...] from neighbouring pairs to pairs of i and i + D / 2."""
    return tensor.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def plan(backbone: Any, known: LocalVocabulary, is_binary: bool) -> Plan:
    """Return the tensors to write, by published name.

    Args:
        backbone: Hyperparameters of the backbone.
        known: Vocabulary.
        is_binary: True if a head of its own chooses between a slot and the end.
    """
    depth = known.depth
    width = backbone.hidden_size
    text = (known.num_text_ids, width)
    tables = dict.fromkeys(
        (f"audio_embeddings.{k}.weight" for k in range(known.num_codebooks)), (known.codebook_size, width)
    )
    first, second, *others = tables

    def decisions(text: Tensor) -> Tensor:
        return text[[known.slot, known.audio_end]]

    def rows_of_codes(*codes: Tensor) -> Tensor:
        return torch.cat([codes[0].new_zeros(1, width), *codes])  # a row of the slot, which is not read

    def heads(second: Tensor, first: Tensor, *others: Tensor) -> Tensor:
        return torch.stack([first, second, *others])

    heads_also = () if is_binary else (Part("depth.first_head", text, decisions),)
    parts: Plan = {
        EMBEDDINGS: Part("model.embed_tokens.weight", text, concatenated, also=heads_also, others=tables),
        **merged("depth.embed", rows_of_codes, dict(list(tables.items())[:-1])),
        **merged("depth.heads", heads, {name: tables[name] for name in (second, first, *others)}),
    }
    if is_binary:
        parts[BINARY_HEAD] = Part("depth.first_head", (2, width))
    parts |= layers_plan(shapes_of(Qwen3Model, backbone), BACKBONE)
    return parts | {name: depth_part(name, shape, depth.num_heads) for name, shape in local_shapes(depth).items()}


def depth_part(name: str, shape: tuple[int, ...], num_heads: int) -> Part:
    """Return how a tensor of the depth transformer's layers and final norm is written.

    Args:
        name: Published name.
        shape: Its shape.
        num_heads: Number of attention heads.
    """
    words = name.removeprefix(LOCAL).split(".")
    if words[0] == "ln_f":
        return Part(f"depth.norm.{words[1]}", shape)
    layer = f"depth.layers.{words[1]}"
    part = words[-2]
    kind = words[-1]
    if part != "c_attn":
        return Part(f"{layer}.{'o_proj' if part == 'c_proj' else part}.{kind}", shape)

    def third(number: int, tensor: Tensor) -> Tensor:
        chosen = tensor.chunk(3)[number]
        return chosen.contiguous() if number == 2 else paired_by_half(chosen, num_heads)

    query, *others = (
        Part(f"{layer}.{letter}_proj.{kind}", shape, partial(third, number)) for number, letter in enumerate("qkv")
    )
    return replace(query, also=tuple(others))
