"""Conversion of Qwen3-ASR releases, with names and shapes as in https://huggingface.co/Qwen/Qwen3-ASR-1.7B."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from stretto.family.audio_format import KEY
from stretto.family.conversion import Contents, Converted, Network, Release, common_record, in_lower_case
from stretto.family.layers import Qwen3Backbone, layers_plan
from stretto.family.log_mel_encoder import tower_plan, tower_record
from stretto.family.sections import Section
from stretto.untrusted_files import check_value
from stretto.weights.loading import Part, Plan
from stretto_qwen3_asr.family import LANGUAGES, MARKERS, MAX_MODEL_LEN, NAME, AsrVocabulary

PREFIX = "thinker."
EMBEDDINGS = f"{PREFIX}model.embed_tokens.weight"
HEAD = f"{PREFIX}lm_head.weight"
AUDIO = "thinker_config.audio_config."


class Rope(Section):
    """Rotary embedding. A row needs only one of its three positions, because these differ only for images."""

    rope_type: Literal["default"] = "default"
    type: Literal["default", "mrope"] = "default"


class Text(Qwen3Backbone):
    """Section `text_config`: the backbone. Two fields permit more values than in Qwen3."""

    model_type: Literal["qwen3_asr_text", "qwen3"] = "qwen3_asr_text"  # type: ignore[assignment]
    rope_scaling: Rope | None = None  # type: ignore[assignment]
    tie_word_embeddings: bool = False


class Thinker(Section):
    """Section `thinker_config`."""

    audio_token_id: int
    text_config: Text


class Config(Section):
    """config.json of a release."""

    model_type: Literal["qwen3_asr"]
    support_languages: list[str] | None = Field(None, min_length=1, max_length=256)
    thinker_config: Thinker


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    config = Config.read(contents.config)
    text = config.thinker_config.text_config
    languages = config.support_languages or LANGUAGES
    ids = contents.tokenizer.ids_of(MARKERS.values(), text.vocab_size)
    check_value("thinker_config.audio_token_id", config.thinker_config.audio_token_id, ids[MARKERS["audio_pad"]])
    vocabulary = AsrVocabulary(
        num_ids=text.vocab_size,
        **{field: ids[name] for field, name in MARKERS.items()},
        languages=tuple(in_lower_case(dict.fromkeys(languages), "config.json: support_languages")),
        max_model_len=min(MAX_MODEL_LEN, text.max_position_embeddings),
    )
    has_head = not text.tie_word_embeddings
    audio = tower_record(contents.config, AUDIO, text.hidden_size) | {"model_type": "qwen3_asr_audio_encoder"}
    record = text.record | common_record(NAME, vocabulary, vocabulary.num_ids, contents, has_head)
    record |= {"model_type": "qwen3", KEY: audio}
    dropped = () if has_head else (HEAD,)
    return Converted(record, plan(text, audio), dropped, networks=(Network("codec", {}, {}),))


def plan(text: Text, audio: Mapping[str, Any]) -> Plan:
    """Return the tensors to write, by published name. `audio` is the `audio_config` to be written."""
    tables = (EMBEDDINGS,) if text.tie_word_embeddings else (EMBEDDINGS, HEAD)
    parts: Plan = {name: Part(name.removeprefix(PREFIX), (text.vocab_size, text.hidden_size)) for name in tables}
    return parts | layers_plan(text.shapes, f"{PREFIX}model.") | tower_plan(audio, f"{PREFIX}audio_tower.")
