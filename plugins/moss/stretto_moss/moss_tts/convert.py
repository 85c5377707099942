"""Conversion of MOSS-TTS releases with the delay pattern (`model_type` moss_tts_delay), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer, is in
another repository. The tables of text and of all codebooks become one. The joined head begins with the only two rows of
the text head that audio needs, for the slot id and the delay id. The heads of the codebooks follow, without the rows of
the pads, which the model never generates.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.conversion import Contents, Converted, Release, common_record, concatenated, merged
from stretto.family.layers import Qwen3Backbone, layers_plan
from stretto.family.sections import NumCodebooks, Section, Size
from stretto.weights.backbones import dtype_of
from stretto.weights.loading import Plan
from stretto_moss.moss_tts.family import MAX_MODEL_LEN, MossVocabulary

BACKBONE = "language_model."
EMBEDDINGS = f"{BACKBONE}embed_tokens.weight"
TEXT_HEAD = "lm_heads.0.weight"
MARKS = {TEXT_HEAD: "MOSS-TTS"}
# Keys in config.json of the vocabulary's ids.
IDS = {
    "pad": "pad_token_id",
    "turn_start": "im_start_token_id",
    "turn_end": "im_end_token_id",
    "audio_start": "audio_start_token_id",
    "audio_end": "audio_end_token_id",
    "recorded": "audio_user_slot_token_id",
    "slot": "audio_assistant_gen_slot_token_id",
    "delay": "audio_assistant_delay_slot_token_id",
}


class MarkedIds(Section):
    """Ids of special tokens in config.json, with the defaults of the authors' classes."""

    pad_token_id: int = 151643
    im_start_token_id: int = 151644
    im_end_token_id: int = 151645
    audio_user_slot_token_id: int = 151654

    def ids(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Return the vocabulary's ids, read from these keys; raise CheckpointError if two are equal."""
        ids = {name: getattr(self, key) for name, key in keys.items()}
        if len({*ids.values()}) < len(ids):
            raise CheckpointError(f"config.json: expected {len(ids)} different ids of text tokens, got {ids}")
        return ids


class MarkedSpeech(MarkedIds):
    """Fields of config.json shared by releases with a Qwen3 backbone and special tokens around speech."""

    ids_below = "language_config.vocab_size"

    language_config: Qwen3Backbone
    audio_vocab_size: Size = 1024


class Config(MarkedSpeech):
    """Fields of a release's config.json that the conversion reads."""

    model_type: Literal["moss_tts_delay"]
    n_vq: NumCodebooks = 32
    audio_pad_code: int | None = None
    local_num_layers: None = None  # set in MOSS-TTS-Local-Transformer 1.0, which has the same model_type
    audio_start_token_id: int = 151652
    audio_end_token_id: int = 151653
    audio_assistant_gen_slot_token_id: int = 151656
    audio_assistant_delay_slot_token_id: int = 151662

    @model_validator(mode="after")
    def _check_pad(self) -> Self:
        if self.audio_pad_code not in (None, self.audio_vocab_size):
            raise InvalidRequest("audio_pad_code", str(self.audio_vocab_size), self.audio_pad_code)
        return self


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype of the release, or of its language model if only that is stated."""
    section = config.get("language_config")
    return dtype_of(config) or (dtype_of(section) if isinstance(section, Mapping) else None)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    backbone, vocabulary = read_config(contents.config)
    contents.tokenizer.ids_of((), vocabulary.num_text_ids)
    record = {
        **backbone.record,
        **common_record("moss_tts", vocabulary, vocabulary.layout.vocab_size, contents),
    }
    return Converted(record, plan(backbone, vocabulary), ())


def read_config(record: Mapping[str, Any]) -> tuple[Qwen3Backbone, MossVocabulary]:
    """Return the backbone's hyperparameters and the vocabulary; raise CheckpointError if they are not supported."""
    config = Config.read(record)
    backbone = config.language_config
    vocabulary = MossVocabulary(
        num_text_ids=backbone.vocab_size,
        num_codebooks=config.n_vq,
        codebook_size=config.audio_vocab_size,
        **config.ids(IDS),
        max_model_len=min(MAX_MODEL_LEN, backbone.max_position_embeddings),
    )
    return backbone, vocabulary


def plan(backbone: Qwen3Backbone, vocabulary: MossVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    text = (vocabulary.num_text_ids, backbone.hidden_size)
    codes = (vocabulary.codebook_size + 1, backbone.hidden_size)
    ends = sorted((vocabulary.slot, vocabulary.delay))
    numbers = range(vocabulary.num_codebooks)

    def heads(text: Tensor, *codes: Tensor) -> Tensor:
        return torch.cat([text[ends], *(head[:-1] for head in codes)])

    tables = {EMBEDDINGS: text} | {f"emb_ext.{number}.weight": codes for number in numbers}
    return {
        **merged("model.embed_tokens.weight", concatenated, tables),
        **layers_plan(backbone.shapes, BACKBONE),
        **merged("audio_head.weight", heads, {TEXT_HEAD: text} | {f"lm_heads.{k + 1}.weight": codes for k in numbers}),
    }
