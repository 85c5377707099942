"""Conversion of MOSS-TTS releases with the delay pattern (`model_type` moss_tts_delay), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer, is a
repository of its own. The tables of text and of all codebooks become one. Of the text head, only the rows of the slot
id and the delay id are needed in audio; they precede the heads of the codebooks, without the rows of the pads, which
the model never generates.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    check_folded,
    common_record,
    integer,
    merged_reader,
    section,
)
from stretto.untrusted_files import check_value
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, dtype_of, read_numbers
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_moss.moss_tts.family import MAX_MODEL_LEN, MossVocabulary
from stretto_moss.moss_tts.recognise import MODEL_TYPE, refusal_of

BACKBONE = "language_model."
EMBEDDINGS = f"{BACKBONE}embed_tokens.weight"
TEXT_HEAD = "lm_heads.0.weight"
MARKS = {TEXT_HEAD: "MOSS-TTS"}
# Ids of the vocabulary by their keys in config.json, and the values of a release that does not state them.
IDS = {
    "pad": ("pad_token_id", 151643),
    "turn_start": ("im_start_token_id", 151644),
    "turn_end": ("im_end_token_id", 151645),
    "audio_start": ("audio_start_token_id", 151652),
    "audio_end": ("audio_end_token_id", 151653),
    "recorded": ("audio_user_slot_token_id", 151654),
    "slot": ("audio_assistant_gen_slot_token_id", 151656),
    "delay": ("audio_assistant_delay_slot_token_id", 151662),
}
MAX_CODEBOOKS = 64
MAX_CODES = 1 << 16
# the published ones are 1e6 and 1e-6
MAX_THETA = 1e9
MAX_EPS = 1.0


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype of the release, or of its language model if only that is stated."""
    section = config.get("language_config")
    return dtype_of(config) or (dtype_of(section) if isinstance(section, Mapping) else None)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    backbone, known = read_config(contents.config)
    contents.tokenizer.ids_of((), known.num_text_ids)
    folded = folded_shapes(backbone.hidden_size, known)
    check_folded(contents.tensors, folded)
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: getattr(backbone, name) for name in LLAMA_NUMBERS if name != "mlp_bias"},
        **common_record("moss_tts", known, known.layout.vocab_size, contents),
    }
    parts = plan(backbone, known, contents.tensors)
    return Converted(record, parts, (), tuple(name for name in folded if name not in parts))


def read_config(record: Mapping[str, Any]) -> tuple[Any, MossVocabulary]:
    """Return the hyperparameters of the backbone, and the vocabulary.

    Args:
        record: config.json of a release.

    Raises:
        CheckpointError: A value is missing, invalid or not supported, or belongs to another model.
    """
    if refusal := refusal_of(record):
        raise CheckpointError(f"config.json: {refusal}")
    check_value("model_type", record.get("model_type"), MODEL_TYPE)
    backbone = qwen3_backbone(section(record, "language_config"))
    num_codebooks = integer(record, "n_vq", MAX_CODEBOOKS, usual=32)
    size = integer(record, "audio_vocab_size", MAX_CODES, usual=1024)
    ids = {name: integer(record, key, backbone.vocab_size - 1, usual=usual) for name, (key, usual) in IDS.items()}
    if record.get("audio_pad_code", size) != size or len({*ids.values()}) < len(ids):
        expected = f"audio_pad_code {size} and {len(ids)} different ids of text tokens"
        raise CheckpointError(f"config.json: expected {expected}, got {record.get('audio_pad_code')} and {ids}")
    known = MossVocabulary(
        num_text_ids=backbone.vocab_size,
        num_codebooks=num_codebooks,
        codebook_size=size,
        **ids,
        max_model_len=min(MAX_MODEL_LEN, backbone.max_position_embeddings),
    )
    return backbone, known


def qwen3_backbone(numbers: Mapping[str, Any]) -> Any:
    """Return the section `language_config` as a Qwen3Config; raise CheckpointError if it is not supported."""
    backbone = read_numbers(Qwen3Config, {"model_type": "qwen3", **numbers})
    check_heads(backbone)
    if backbone.attention_bias or backbone.hidden_act != "silu" or backbone.use_sliding_window:
        raise CheckpointError("config.json: language_config: expected layers of Qwen3 without biases and windows")
    rope = backbone.rope_parameters or {}
    theta = rope.get("rope_theta")
    kind = rope.get("rope_type", "default")
    is_number = isinstance(theta, int | float) and not isinstance(theta, bool) and 0 < theta <= MAX_THETA
    if kind != "default" or not is_number:
        expected = f"rope_type default and rope_theta in (0, {MAX_THETA:g}]"
        raise CheckpointError(f"config.json: language_config: expected {expected}, got {shown(dict(rope))}")
    return backbone


def folded_shapes(width: int, known: MossVocabulary) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tables of all codebooks and of all heads."""
    table = (known.codebook_size + 1, width)
    numbers = range(known.num_codebooks)
    shapes: dict[str, tuple[int, ...]] = {TEXT_HEAD: (known.num_text_ids, width)}
    shapes |= {f"emb_ext.{number}.weight": table for number in numbers}
    return shapes | {f"lm_heads.{number + 1}.weight": table for number in numbers}


def plan(backbone: Any, known: MossVocabulary, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors to write, by published name."""
    shapes = {
        name.removeprefix("model."): shape
        for name, shape in shapes_of(Qwen3ForCausalLM, backbone).items()
        if name.startswith("model.")
    }
    read = merged_reader(tensors, folded_shapes(backbone.hidden_size, known))

    def with_codes(text: Tensor) -> Tensor:
        return torch.cat([text, *(read(f"emb_ext.{number}.weight", text) for number in range(known.num_codebooks))])

    def heads(text: Tensor) -> Tensor:
        codes = [read(f"lm_heads.{number + 1}.weight", text)[:-1] for number in range(known.num_codebooks)]
        return torch.cat([text[sorted((known.slot, known.delay))], *codes])

    parts = {f"{BACKBONE}{name}": Part(f"model.{name}", shape) for name, shape in shapes.items()}
    table = parts[EMBEDDINGS]
    parts[EMBEDDINGS] = Part(table.name, table.stored, with_codes)
    parts[TEXT_HEAD] = Part("audio_head.weight", (known.num_text_ids, backbone.hidden_size), heads)
    return parts
