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
from transformers import Qwen3Config, Qwen3Model

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    common_record,
    concatenated,
    integer,
    merged,
    section,
)
from stretto.family.layers import layers_plan
from stretto.untrusted_files import check_value
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, dtype_of, read_numbers
from stretto.weights.loading import Plan, shapes_of
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
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: getattr(backbone, name) for name in LLAMA_NUMBERS if name != "mlp_bias"},
        **common_record("moss_tts", known, known.layout.vocab_size, contents),
    }
    return Converted(record, plan(backbone, known), ())


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


def plan(backbone: Any, known: MossVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    text = (known.num_text_ids, backbone.hidden_size)
    codes = (known.codebook_size + 1, backbone.hidden_size)
    ends = sorted((known.slot, known.delay))
    numbers = range(known.num_codebooks)

    def heads(text: Tensor, *codes: Tensor) -> Tensor:
        return torch.cat([text[ends], *(head[:-1] for head in codes)])

    tables = {EMBEDDINGS: text} | {f"emb_ext.{number}.weight": codes for number in numbers}
    return {
        **merged("model.embed_tokens.weight", concatenated, tables),
        **layers_plan(shapes_of(Qwen3Model, backbone), BACKBONE),
        **merged("audio_head.weight", heads, {TEXT_HEAD: text} | {f"lm_heads.{k + 1}.weight": codes for k in numbers}),
    }
