"""Conversion of Higgs Audio v3: names and shapes as published by Boson AI (`model_type` higgs_multimodal_qwen3).

The release is https://huggingface.co/bosonai/higgs-tts-3-4b. `model.safetensors` also contains the codec, with the
names that it has in transformers, and copies of the two tied tables as heads. The codec's parameters are not in the
release: they are those of bosonai/higgs-audio-v2-tokenizer, unless config.json has a `codec_config`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from transformers import HiggsAudioV2TokenizerConfig

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    concatenated,
    merged,
)
from stretto.family.layers import Qwen3Backbone, layers_plan
from stretto.family.sections import Section, Theta
from stretto.untrusted_files import UNPARSABLE, entry, without_keys
from stretto.weights.backbones import dtype_of
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_higgs_audio.codec import HiggsModel
from stretto_higgs_audio.higgs_audio_v3.family import (
    MAX_ROWS,
    NAME,
    NEEDED,
    NUM_MARKS,
    TAG,
    HiggsAudioV3Vocabulary,
)

TEXTS = "tied.embedding.text_embedding.weight"
CODES = "tied.embedding.modality_embeddings.0.embedding.weight"
CODEC = "tied.embedding.modality_embeddings.0.model."
EMBEDDINGS = TEXTS
MARKS = {CODES: "Higgs Audio v3"}
# Copies of tied tables, and a tensor of the codec that only training uses.
DROPPED = ("tied.head.", f"{CODEC}semantic_model.masked_spec_embed")
MIN_PROMPT_ROWS = 4  # <|tts|>, <|text|>, a word, <|audio|>
RATIOS = [8, 5, 4, 2, 3]
CODEC_CONFIG = {
    "target_bandwidths": [0.5, 1, 1.5, 2],
    "acoustic_model_config": {
        "encoder_hidden_size": 64,
        "decoder_hidden_size": 1024,
        "hidden_size": 256,
        "downsampling_ratios": RATIOS,
        "upsampling_ratios": RATIOS,
    },
    "semantic_model_config": {"model_type": "hubert", "mask_time_prob": 0.0},
}


class Codebooks(Section):
    """`audio_encoder_config`: tables of these sizes are made."""

    encoder_type: Literal["discrete"] = "discrete"
    tie_word_embeddings: Literal[True] = True
    use_delay_pattern: Literal[True] = True
    out_dim: int | None = None
    num_codebooks: Annotated[int, Field(ge=2, le=64)]
    vocab_size: Annotated[int, Field(gt=NUM_MARKS, le=1 << 16)]  # with begin and end


class TextModel(Qwen3Backbone):
    """Section `text_config`; in some files, null represents a missing field."""

    rope_theta: Theta = 1e6  # Qwen3's

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, record: Any) -> Any:
        if not isinstance(record, Mapping):
            return record
        return {name: value for name, value in record.items() if value is not None}


class Config(Section):
    """config.json of a release."""

    model_type: Literal["higgs_multimodal_qwen3"]
    audio_encoder_config: Codebooks
    text_config: TextModel
    codec_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        audio = self.audio_encoder_config
        width = self.text_config.hidden_size
        num_rows = self.text_config.max_position_embeddings
        least = MIN_PROMPT_ROWS + 2 * audio.num_codebooks  # rows of the shortest prompt and of its shortest reply
        if audio.out_dim not in (None, width):
            raise InvalidRequest("audio_encoder_config.out_dim", str(width), audio.out_dim)
        if num_rows < least:
            raise InvalidRequest("text_config.max_position_embeddings", f"at least {least} rows", num_rows)
        return self


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype used in training, or the text model's dtype if the config has no other."""
    return dtype_of(config) or dtype_of(entry(config, "text_config"))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint: the code embeddings appended to the text table, and as their head."""
    config = Config.read(contents.config)
    vocab = vocabulary(config, contents.tokenizer)
    record = {
        **config.text_config.record,
        **common_record(NAME, vocab, vocab.layout.vocab_size, contents),
        "max_position_embeddings": vocab.max_model_len,
    }
    codec = codec_network(config, vocab)
    return Converted(record, plan(config, vocab), DROPPED, networks=(codec,))


def vocabulary(config: Config, tokenizer: Tokenizer) -> HiggsAudioV3Vocabulary:
    """Return the vocabulary: tokenizer ids, followed by the ids of the codebooks."""
    text = config.text_config
    ids = tokenizer.ids_of(NEEDED, text.vocab_size)
    tags = {name: ids[name] for name in sorted(ids, key=ids.__getitem__) if TAG.fullmatch(name)}  # the same in each run
    return HiggsAudioV3Vocabulary(
        num_text_ids=text.vocab_size,
        num_codebooks=config.audio_encoder_config.num_codebooks,
        codebook_size=config.audio_encoder_config.vocab_size - NUM_MARKS,
        markers={name: ids[name] for name in NEEDED} | tags,
        max_model_len=min(MAX_ROWS, text.max_position_embeddings),
    )


def plan(config: Config, vocab: HiggsAudioV3Vocabulary) -> Plan:
    """Return the plan of tensors to write, by published name."""
    width = config.text_config.hidden_size
    codes = (vocab.num_codebooks * (vocab.codebook_size + NUM_MARKS), width)
    tables = {TEXTS: (vocab.num_text_ids, width), CODES: codes}
    table = merged("model.embed_tokens.weight", concatenated, tables)
    return table | layers_plan(config.text_config.shapes, "body.") | {CODES: Part("audio_head.weight", codes)}


def codec_network(release: Config, vocab: HiggsAudioV3Vocabulary) -> Network:
    """Return the codec among the tensors of the release."""
    numbers = CODEC_CONFIG if release.codec_config is None else release.codec_config
    try:
        config = HiggsAudioV2TokenizerConfig.from_dict(without_keys(numbers))
        shapes = shapes_of(HiggsModel, config)
        sizes = (config.num_quantizers, config.codebook_size)
    except (*UNPARSABLE, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(f"config.json: codec_config: invalid parameters: {shown(error, 200)}") from error
    if sizes != (vocab.num_codebooks, vocab.codebook_size):
        expected = f"{vocab.num_codebooks} codebooks of {vocab.codebook_size} codes"
        raise CheckpointError(f"config.json: expected {expected}, as audio_encoder_config has; the codec has {sizes}")
    parts = {f"{CODEC}{name}": Part(name, shape) for name, shape in shapes.items()}
    return Network("codec", {**config.to_dict(), "architectures": ["HiggsAudioV2TokenizerModel"]}, parts)
