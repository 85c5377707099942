"""Conversion of Kyutai's speech-to-text releases in transformers format, which has Mimi in the same files.

It supports https://huggingface.co/kyutai/stt-2.6b-en-trfs, kyutai/stt-1b-en_fr-trfs, and models that
`KyutaiSpeechToTextForConditionalGeneration.save_pretrained` wrote. The feature extractor's config has the delays. There
are no pause heads. Queries and keys are already in the order in which halves of a head are rotated.

A reply begins with the id that follows the text ids, as in the authors' code. `bos_token_id` is not read: by default it
is an id of the codes of codebook 21.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from torch import Tensor
from transformers import MimiConfig, MimiModel

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    common_record,
    concatenated,
    merged,
)
from stretto.family.sections import Epsilon, Integer, NumLayers, Section, Size, Theta
from stretto.untrusted_files import UNPARSABLE, entry, json_object, released_file, without_keys
from stretto.weights.backbones import with_older_keys
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_kyutai.kyutai_stt.convert import check_tokenizer, durations, llama_record
from stretto_kyutai.kyutai_stt.family import NAME, SttVocabulary
from stretto_kyutai.kyutai_stt.recognise import FEATURES, PROCESSOR

IS_BARE = True  # the tokenizer need not be byte-level
EMBEDDINGS = "model.embed_tokens.embed_tokens.weight"


class Layers(Section):
    """Layers of Kyutai's models, with a gate in the feed-forward layers."""

    hidden_act: Literal["silu"]
    hidden_size: Size
    num_hidden_layers: NumLayers
    num_attention_heads: Size
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: Annotated[int, Field(ge=2, le=1 << 17, multiple_of=2)]  # width of gate and input together
    rms_norm_eps: Epsilon
    sliding_window: Integer

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        width = self.hidden_size
        heads = self.num_attention_heads
        if width % (2 * heads):
            raise InvalidRequest("hidden_size", "heads of an even width", f"{width} for {heads} heads")
        for name, expected in (("num_key_value_heads", heads), ("head_dim", width // heads)):
            if getattr(self, name) not in (None, expected):
                raise InvalidRequest(name, str(expected), getattr(self, name))
        return self


class Backbone(Layers):
    """Fields of config.json for the backbone, under the names of either version of transformers."""

    tie_word_embeddings: Literal[False] | None = None
    rope_theta: Theta
    rope_scaling: None = None
    vocab_size: Integer

    @model_validator(mode="before")
    @classmethod
    def _with_older_keys(cls, record: Any) -> Any:
        return with_older_keys(record) if isinstance(record, Mapping) else record

    @property
    def record(self) -> dict[str, Any]:
        """Backbone fields for the checkpoint's config.json."""
        numbers = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_dim // 2,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
        }
        return llama_record(numbers, self.rms_norm_eps, self.rope_theta, self.sliding_window)


class Config(Backbone):
    """Fields of a release's config.json that the conversion reads."""

    model_type: Literal["kyutai_speech_to_text"]
    num_codebooks: Integer
    codebook_vocab_size: Annotated[int, Field(ge=2, le=1 << 16)]  # codes and the initial id
    audio_bos_token_id: int

    @model_validator(mode="after")
    def _check_initial_id(self) -> Self:
        if self.audio_bos_token_id != self.codebook_vocab_size - 1:
            raise InvalidRequest("audio_bos_token_id", str(self.codebook_vocab_size - 1), self.audio_bos_token_id)
        return self


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including Mimi."""
    config = Config.read(contents.config)
    vocab = vocabulary(config, delays_of(release))
    check_tokenizer(contents.tokenizer, vocab.num_text_ids)
    record = {
        **config.record,
        "max_position_embeddings": vocab.max_model_len,
        **common_record(NAME, vocab, vocab.vocab_size, contents, has_head=True),
    }
    codec = codec_network(contents.config, "codec_config", "codec_model.", vocab.num_codebooks, vocab.codebook_size)
    return Converted(record, backbone_plan(config, "model.") | plan(config, vocab), (), networks=(codec,))


def delays_of(release: Release) -> dict[str, Any]:
    """Return the fields of the vocabulary that the feature extractor's config determines.

    In transformers 5, the feature extractor's config is a section of the processor's config.
    """
    folder = release.config_folder
    file_name = next((name for name in (FEATURES, PROCESSOR) if (folder / name).exists()), FEATURES)
    section = "feature_extractor" if file_name == PROCESSOR else ""
    return durations(json_object(released_file(folder, file_name)), file_name, section)


def vocabulary(config: Config, delays: Mapping[str, Any]) -> SttVocabulary:
    """Return a release's vocabulary, without the initial id, which each table has at its end."""
    return SttVocabulary(
        num_text_ids=config.vocab_size - 1,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_vocab_size - 1,
        **delays,
    )


def backbone_plan(layers: Layers, prefix: str) -> Plan:
    """Return the plan of the backbone's layers and final norm. `prefix` has a dot at the end."""
    width = layers.hidden_size
    inner = layers.ffn_dim // 2
    parts: Plan = {f"{prefix}norm.weight": Part("model.norm.weight", (width,))}
    for layer in range(layers.num_hidden_layers):
        stored = f"{prefix}layers.{layer}"
        ours = f"model.layers.{layer}"
        fused = dict.fromkeys((f"{stored}.self_attn.{letter}_proj.linear.weight" for letter in "qkv"), (width, width))
        parts |= merged(f"{ours}.self_attn.qkv_proj.weight", concatenated, fused)
        for name, mine, shape in (
            ("self_attn.o_proj.linear.weight", "self_attn.o_proj.weight", (width, width)),
            ("mlp.fc1.weight", "mlp.gate_up_proj.weight", (2 * inner, width)),
            ("mlp.fc2.weight", "mlp.down_proj.weight", (width, inner)),
            ("input_layernorm.weight", "input_layernorm.weight", (width,)),
            ("post_attention_layernorm.weight", "post_attention_layernorm.weight", (width,)),
        ):
            parts[f"{stored}.{name}"] = Part(f"{ours}.{mine}", shape)
    return parts


def plan(config: Config, vocab: SttVocabulary) -> Plan:
    """Return the plan of the embeddings and the head."""
    width = config.hidden_size
    num_text = vocab.num_text_ids
    num_ids = vocab.vocab_size
    num_rows = num_ids - 1  # without our own two ids, but with a row of zeros at the end

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings of text and initial text, of our own two ids, and of all codes, [V, H]."""
        return torch.cat([stored[: num_text + 1], stored.new_zeros(2, width), stored[num_text + 1 : -1]])

    def head(stored: Tensor) -> Tensor:
        """Return the head of text without its last row, for the initial id, which is never generated."""
        return torch.cat([stored[:-1], stored.new_zeros(num_ids - num_text, width)])

    return {
        EMBEDDINGS: Part("model.embed_tokens.weight", (num_rows, width), table),
        "lm_head.weight": Part("lm_head.weight", (num_text + 1, width), head),
    }


def codec_network(
    config: Mapping[str, Any], section: str, prefix: str, num_codebooks: int, codebook_size: int
) -> Network:
    """Return Mimi from the release's own tensors.

    Args:
        section: Key of Mimi's config in config.json.
        prefix: Prefix of Mimi's tensors, with a dot at the end.
    """
    numbers = entry(config, section, "config.json")
    model_type = numbers.get("model_type", "mimi") if isinstance(numbers, Mapping) else numbers
    if model_type != "mimi":
        raise CheckpointError(f"config.json: {section}: expected a config of mimi, got {shown(model_type)}")
    try:
        mimi = MimiConfig.from_dict(without_keys(numbers))
    except (*UNPARSABLE, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"config.json: {section}: invalid parameters for mimi: {reason}") from error
    sizes = (mimi.num_quantizers, mimi.codebook_size)
    if sizes[0] < num_codebooks or sizes[1] != codebook_size:
        expected = f"{num_codebooks} codebooks of {codebook_size} codes"
        raise CheckpointError(f"config.json: {section}: expected {expected}, got {sizes[0]} of {sizes[1]}")
    parts = {f"{prefix}{name}": Part(name, shape) for name, shape in shapes_of(MimiModel, mimi).items()}
    return Network("codec", {**mimi.to_dict(), "architectures": ["MimiModel"]}, parts)
