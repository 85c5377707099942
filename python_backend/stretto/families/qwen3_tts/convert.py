"""Conversion of Qwen3-TTS releases: names, shapes and ids as published by Qwen; the codec is in `speech_tokenizer/`.

It supports https://huggingface.co/Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice and the other models in that series. All
hyperparameters of the talker come from config.json. A config.json that lacks a value is rejected, because the defaults
of the authors' classes belong to another model.

The talker's text projection, fc2(silu(fc1(x))), and the depth transformer's projection of codes are functions of a
single id. The converted tables therefore contain the projected embeddings. The weights file of Base, which clones
voices, contains a speaker encoder. The encoder is written to a separate folder, and the embedding of the text pad,
which is added to an x-vector, to a separate tensor.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stretto.encoders.x_vector import FOLDER, PREFIX, SpeakerConfig, SpeakerEncoder
from stretto.errors import CheckpointError, shown
from stretto.families.qwen3_tts.family import SILENT_FRAMES, SPEAKERS, CodecIds, Qwen3TtsVocabulary, TextIds
from stretto.family.audio_format import KEY
from stretto.family.base import DepthSpec
from stretto.family.conversion import (
    AUDIO,
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    in_lower_case,
    linear,
    merged,
    prefixed,
    stacked,
)
from stretto.family.layers import Qwen3Layers, depth_spec, layers_plan
from stretto.family.sections import Integer, Section
from stretto.untrusted_files import check_value
from stretto.weights.loading import Part, Plan, Shape, shapes_of, shapes_read

SMALLER = "0b6"  # `tts_model_size` of the releases that were not trained to follow instructions
CODEC_IDS = ("pad", "bos", "think", "nothink", "think_bos", "think_eos")
NUM_SUPPRESSED = 1024  # last ids of the talker's vocabulary; of these, the authors' code samples only the end id
WORDS = {"assistant": "assistant", "user": "user", "newline": "Ċ"}  # tokens in every prompt


class CodePredictor(Qwen3Layers):
    """`code_predictor_config`: the depth transformer."""

    vocab_size: Integer
    num_code_groups: Annotated[int, Field(ge=3, le=64)]


class Talker(Qwen3Layers):
    """`talker_config`."""

    ids_below = "vocab_size"

    vocab_size: Integer
    text_vocab_size: Integer
    text_hidden_size: Integer
    max_position_embeddings: Integer
    num_code_groups: int
    rope_scaling: dict[str, Any]
    codec_pad_id: int
    codec_bos_id: int
    codec_eos_token_id: int
    codec_think_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    codec_language_id: dict[str, int]
    spk_id: dict[str, int]
    spk_is_dialect: dict[str, str | Literal[False] | None] | None = None
    code_predictor_config: CodePredictor


class TextMarkers(Section):
    """Fields of config.json with the ids of markers in a prompt's text."""

    im_start_token_id: int
    im_end_token_id: int
    tts_pad_token_id: int
    tts_bos_token_id: int
    tts_eos_token_id: int

    def text_ids(self, tokenizer: Tokenizer, num_ids: int) -> TextIds:
        """Return the ids of words and markers in every prompt; raise CheckpointError if the tokenizer does not fit."""
        ids = tokenizer.ids_of(WORDS.values(), num_ids)
        return TextIds(
            im_start=self.im_start_token_id,
            im_end=self.im_end_token_id,
            pad=self.tts_pad_token_id,
            bos=self.tts_bos_token_id,
            eos=self.tts_eos_token_id,
            **{name: ids[word] for name, word in WORDS.items()},
        )


class Config(TextMarkers):
    """config.json of a release."""

    ids_below = "talker_config.text_vocab_size"

    model_type: Literal["qwen3_tts"]
    tokenizer_type: Literal["qwen3_tts_tokenizer_12hz"]
    tts_model_type: Literal["custom_voice", "voice_design", "base"]
    tts_model_size: str
    talker_config: Talker
    speaker_encoder_config: dict[str, Any] | None = None


def check_talker(depth: CodePredictor, num_ids: int, num_codebooks: int, path: str = "talker_config.") -> None:
    """Raise CheckpointError unless a talker's numbers of ids and codebooks fit its depth transformer's."""
    if num_ids - NUM_SUPPRESSED != depth.vocab_size:
        expected = f"{depth.vocab_size} codes and {NUM_SUPPRESSED} markers"
        raise CheckpointError(f"config.json: {path}vocab_size: expected {expected}, got {num_ids}")
    check_value("talker_config.num_code_groups", num_codebooks, depth.num_code_groups)


def rope_sections(layers: Qwen3Layers, scaling: Mapping[str, Any]) -> list[int]:
    """Return the rotary embedding's sections; raise CheckpointError unless they add up to half the head dimension.

    Each section rotates by one of three positions of a row. If these are equal, the result is that of ordinary RoPE.
    """
    sections = scaling.get("mrope_section")
    if (
        not isinstance(sections, list)
        or not all(type(size) is int for size in sections)
        or 2 * sum(sections) != layers.head_dim
    ):
        expected = f"integers with sum {layers.head_dim / 2:g}, half the head_dim"
        raise CheckpointError(f"config.json: rope_scaling.mrope_section: expected {expected}, got {shown(sections)}")
    return sections


def vocabulary(config: Config, tokenizer: Tokenizer) -> Qwen3TtsVocabulary:
    """Return the vocabulary and voices; raise CheckpointError if the tokenizer, a voice or a dialect is unsuitable."""
    talker = config.talker_config
    depth = talker.code_predictor_config
    check_talker(depth, talker.vocab_size, talker.num_code_groups)
    rope_sections(talker, talker.rope_scaling)
    model_type = config.tts_model_type
    languages = in_lower_case(talker.codec_language_id, "config.json: talker_config.codec_language_id")
    speakers = in_lower_case(talker.spk_id, "config.json: talker_config.spk_id")
    has_published_speakers = bool(speakers) and speakers.items() <= SPEAKERS.items()
    return Qwen3TtsVocabulary(
        kind=model_type,
        takes_instructions=model_type == "voice_design"
        or (model_type == "custom_voice" and config.tts_model_size != SMALLER),
        num_text_ids=talker.text_vocab_size,
        num_codec_ids=talker.vocab_size,
        num_codebooks=talker.num_code_groups,
        codebook_size=depth.vocab_size,
        text=config.text_ids(tokenizer, talker.text_vocab_size),
        codec=CodecIds(
            **{name: getattr(talker, f"codec_{name}_id") for name in CODEC_IDS}, eos=talker.codec_eos_token_id
        ),
        languages=languages,
        speakers=speakers,
        silent_frames=SILENT_FRAMES if has_published_speakers else 0,
        dialects=_dialects(talker, languages),
        max_model_len=talker.max_position_embeddings,
        depth=depth_of(talker, depth),
    )


def _dialects(talker: Talker, languages: Collection[str]) -> dict[str, str]:
    """Map the speakers that have a dialect to that dialect, which is a language."""
    entries = in_lower_case(talker.spk_is_dialect or {}, "config.json: talker_config.spk_is_dialect")
    dialects = {name: dialect for name, dialect in entries.items() if dialect}
    for name, dialect in dialects.items():
        if dialect not in languages:
            raise CheckpointError(
                f"config.json: talker_config.spk_is_dialect.{name}: expected a language, got {dialect!r}"
            )
    return dialects


def depth_of(talker: Qwen3Layers, depth: CodePredictor) -> DepthSpec:
    """Return the hyperparameters of a talker's depth transformer."""
    projection = None if depth.hidden_size == talker.hidden_size else "biased"
    return depth_spec(depth, depth.rope, projection=projection, has_head_norms=True)


def speaker_encoder(record: dict[str, Any], hidden_size: int) -> Network:
    """Return the speaker encoder; raise CheckpointError if config.json describes a different encoder or width."""
    field = "config.json: speaker_encoder_config"
    try:
        config = SpeakerConfig.from_record(record)
        shapes = shapes_of(SpeakerEncoder, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{field}: expected a speaker encoder's parameters, got {error}") from error
    if config.enc_dim != hidden_size:
        raise CheckpointError(f"{field}.enc_dim: expected {hidden_size}, the talker's width, got {config.enc_dim}")
    named = {name.removeprefix("network."): shape for name, shape in shapes.items()}
    return Network(FOLDER, record, {f"{PREFIX}{name}": Part(name, shape) for name, shape in named.items()})


# Keys used by the authors' package, which calls the depth transformer "subtalker".
GENERATION = AUDIO | prefixed("subtalker_", "depth") | {"subtalker_dosample": ("depth.temperature",)}
TALKER = "talker.model."
DEPTH = "talker.code_predictor."
EMBEDDINGS = f"{TALKER}text_embedding.weight"
CODES = f"{TALKER}codec_embedding.weight"
HEAD = "talker.codec_head.weight"
MARKS = {CODES: "Qwen3-TTS's language model"}
PROJECTION = f"{DEPTH}small_to_mtp_projection."
TEXT_PROJECTION = "talker.text_projection.linear_fc"


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    config = Config.read(contents.config)
    vocab = vocabulary(config, contents.tokenizer)
    talker = config.talker_config
    width = talker.hidden_size
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **talker.numbers,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": vocab.max_model_len,
        **common_record("qwen3_tts", vocab, vocab.layout.vocab_size, contents),
    }
    text = text_shapes(EMBEDDINGS, vocab.num_text_ids, talker.text_hidden_size, talker.text_hidden_size, width)
    parts = text_and_codes(vocab, text, width)
    networks: tuple[Network, ...] = ()
    if vocab.kind == "base":
        record[KEY] = {"model_type": "x_vector", "hidden_size": width}
        networks = (speaker_encoder(config.speaker_encoder_config or {}, width),)
        parts |= pad_of_text(vocab.text.pad, text)
    if vocab.depth.projection:
        parts |= linear(PROJECTION, "depth.project.", vocab.depth.hidden, width)
    parts |= layers_plan(talker.shapes, TALKER)
    parts |= layers_plan(talker.code_predictor_config.shapes, f"{DEPTH}model.", "depth.")
    return Converted(record, parts, (), networks=networks)


def text_shapes(table: str, num_ids: int, text_width: int, inner: int, width: int) -> dict[str, Shape]:
    """Map the names of the text table and of the text projection's tensors to their shapes, in this order."""
    return {
        table: (num_ids, text_width),
        f"{TEXT_PROJECTION}1.weight": (inner, text_width),
        f"{TEXT_PROJECTION}1.bias": (inner,),
        f"{TEXT_PROJECTION}2.weight": (width, inner),
        f"{TEXT_PROJECTION}2.bias": (width,),
    }


def text_and_codes(vocab: Qwen3TtsVocabulary, text: Mapping[str, Shape], width: int) -> Plan:
    """Return the plan of all embeddings and heads, given the result `text` of `text_shapes`."""
    size = vocab.codebook_size
    end = vocab.codec.eos
    inner = vocab.depth.hidden
    numbers = range(vocab.num_codebooks - 1)
    # Embeddings of the codebooks, of which the backbone and the depth transformer share all but the first.
    codes: dict[str, Shape] = {CODES: (vocab.num_codec_ids, width)}
    codes |= {f"{DEPTH}model.codec_embedding.{k}.weight": (size, width) for k in numbers}
    seen = dict(list(codes.items())[:-1])  # the last codebook is not read by the depth transformer
    projection: dict[str, Shape] = {}
    if vocab.depth.projection:
        projection = shapes_read(linear(PROJECTION, "depth.project.", inner, width))

    def rows_of_all_ids(*stored: Tensor) -> Tensor:
        return torch.cat([text_rows(*stored[: len(text)]), *stored[len(text) :]])

    def rows_of_codes(first: Tensor, *stored: Tensor) -> Tensor:
        tables = torch.cat([first[:size], *stored[: len(seen) - 1]])
        if not projection:
            return tables
        weight, bias = (factor.float() for factor in stored[len(seen) - 1 :])
        return F.linear(tables.float(), weight, bias).to(first.dtype)

    return {
        **merged("model.embed_tokens.weight", rows_of_all_ids, {**text, **codes}),
        HEAD: Part("depth.first_head", codes[CODES], lambda stored: torch.cat([stored[:size], stored[end : end + 1]])),
        **merged("depth.embed", rows_of_codes, seen | projection),
        **merged("depth.heads", stacked, {f"{DEPTH}lm_head.{k}.weight": (size, inner) for k in numbers}),
    }


def pad_of_text(pad: int, text: Mapping[str, Shape]) -> Plan:
    """Return the plan of the pad's text embedding, given the pad's id and the result of `text_shapes`."""
    *first, bias = text

    def edit(last: Tensor, table: Tensor, *others: Tensor) -> Tensor:
        return text_rows(table[pad : pad + 1], *others, last)[0]

    return merged("adaptor.pad", edit, {name: text[name] for name in (bias, *first)})


ROWS_AT_ONCE = 8192  # rows of the text table; a float32 copy of the whole table would take 1.2 GB


def text_rows(table: Tensor, *layers: Tensor) -> Tensor:
    """Project text embeddings [V, H] in float32 by weight and bias of two `layers`; cast once to the stored dtype."""
    first, first_bias, second, second_bias = (tensor.float() for tensor in layers)
    parts = [
        F.linear(F.silu(F.linear(rows.float(), first, first_bias)), second, second_bias).to(table.dtype)
        for rows in table.split(ROWS_AT_ONCE)
    ]
    return torch.cat(parts)
