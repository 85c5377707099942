"""Conversion of MOSS-TTS-Realtime releases (`model_type` moss_tts_realtime), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer, is in
another repository, and has more codebooks than the model. The tables of text and of all codebooks become one. The
authors' class ignores the backbone's own table. The depth transformer's tables and heads keep only the rows of codes,
and in the head of codebook 0 also that of the end.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    Tokenizer,
    common_record,
    concatenated,
    merged,
)
from stretto.family.layers import Qwen3Backbone, Qwen3Layers, depth_spec, layers_plan
from stretto.family.sections import Epsilon, NumLayers, Section, Size, Theta
from stretto.weights.loading import Part, Plan
from stretto_moss.moss_tts.convert import trained_dtype as trained_dtype
from stretto_moss.moss_tts.family import MAX_MODEL_LEN
from stretto_moss.moss_tts_realtime.family import NUM_MARKERS, MossRealtimeVocabulary

BACKBONE = "language_model."
LOCAL = "local_transformer."
EMBEDDINGS = "embed_tokens.0.weight"
UNUSED = f"{BACKBONE}embed_tokens.weight"
HEAD = f"{LOCAL}local_lm_heads.0.weight"
MARKS = {HEAD: "MOSS-TTS-Realtime"}
# Names of tokens, by the name of their id in the vocabulary.
TOKENS = {
    "turn_start": "<|im_start|>",
    "turn_end": "<|im_end|>",
    "recorded": "<|audio_pad|>",
    "text_pad": "<|text_pad|>",
}
Linear = Literal["linear", "default"]


class LinearRope(Section):
    """Section `rope_parameters` of a depth transformer without scaling."""

    rope_type: Linear = "linear"
    factor: Annotated[float, Field(ge=1, le=1)] = 1.0


class LocalLayers(Qwen3Layers):
    """Section `local_config`: the depth transformer, with the defaults of the authors' class."""

    hidden_size: Size = 2048
    intermediate_size: Size = 6144
    num_hidden_layers: NumLayers = 4
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 8
    head_dim: Size = 128
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta = 1e6
    rope_type: Linear = "linear"
    rope_scaling: LinearRope | None = None
    rvq: int | None = None
    audio_pad_token: int | None = None
    audio_vocab_size: int | None = None


class Config(Section):
    """config.json of a release. `local_config` repeats the sizes of the codebooks."""

    rvq: Annotated[int, Field(ge=2, le=64)] = 16
    audio_pad_token: Size = 1024
    audio_vocab_size: int | None = None
    model_type: Literal["moss_tts_realtime"]
    language_config: Qwen3Backbone
    local_config: LocalLayers
    reference_audio_pad: int = 151654
    text_pad: int = 151655

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        local = self.local_config
        num_ids = self.audio_pad_token + NUM_MARKERS
        for name, expected, got in (
            ("audio_vocab_size", num_ids, self.audio_vocab_size),
            ("local_config.audio_vocab_size", num_ids, local.audio_vocab_size),
            ("local_config.audio_pad_token", self.audio_pad_token, local.audio_pad_token),
            ("local_config.rvq", self.rvq, local.rvq),
            ("local_config.hidden_size", self.language_config.hidden_size, local.hidden_size),
        ):
            if got not in (None, expected):
                raise InvalidRequest(name, str(expected), got)
        return self


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    config = Config.read(contents.config)
    vocab = vocabulary(config, contents.tokenizer)
    record = {
        **config.language_config.record,
        **common_record("moss_tts_realtime", vocab, vocab.layout.vocab_size, contents),
    }
    return Converted(record, plan(config, vocab), (UNUSED,))


def vocabulary(config: Config, tokenizer: Tokenizer) -> MossRealtimeVocabulary:
    """Return the vocabulary; raise CheckpointError if the tokenizer has other ids than config.json."""
    backbone = config.language_config
    local = config.local_config
    ids = tokenizer.ids_of(TOKENS.values(), backbone.vocab_size)
    for field, name in (("reference_audio_pad", "<|audio_pad|>"), ("text_pad", "<|text_pad|>")):
        if (got := getattr(config, field)) != ids[name]:
            raise CheckpointError(f"config.json: {field}: expected {ids[name]} ({name}), got {got}")
    return MossRealtimeVocabulary(
        num_text_ids=backbone.vocab_size,
        num_codebooks=config.rvq,
        codebook_size=config.audio_pad_token,
        **{field: ids[name] for field, name in TOKENS.items()},
        max_model_len=min(MAX_MODEL_LEN, backbone.max_position_embeddings),
        depth=depth_spec(local, local.rope, projection=None, has_head_norms=True, num_first=1),
    )


def plan(config: Config, vocab: MossRealtimeVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    backbone = config.language_config
    width = backbone.hidden_size
    size = vocab.codebook_size
    numbers = range(vocab.num_codebooks)
    table = (vocab.num_code_ids, config.local_config.hidden_size)
    tables = {EMBEDDINGS: (vocab.num_text_ids, width)}
    tables |= {f"embed_tokens.{number + 1}.weight": (vocab.num_code_ids, width) for number in numbers}

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
        **layers_plan(backbone.shapes, BACKBONE),
        **layers_plan(config.local_config.shapes, f"{LOCAL}model.", "depth."),
    }
