"""Conversion of VibeVoice-ASR releases, in transformers format or the authors' format.

Names are those of https://huggingface.co/microsoft/VibeVoice-ASR-HF. https://huggingface.co/microsoft/VibeVoice-ASR has
the same tensors under the names of VibeVoice 1.5B, an acoustic decoder that is not needed, and no tokenizer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from stretto.errors import CheckpointError
from stretto.family.audio_format import KEY
from stretto.family.conversion import Contents, Converted, Network, Release, common_record, linear
from stretto.family.layers import layers_plan
from stretto.untrusted_files import check_value, entry
from stretto.weights.backbones import shapes
from stretto.weights.loading import Part, Plan
from stretto_vibevoice.codec import TokenizerConfig, published_name
from stretto_vibevoice.vibevoice.convert import (
    AUTHORS,
    AUTHORS_SEMANTIC,
    llama_numbers,
    network_from_authors,
    qwen2_backbone,
)
from stretto_vibevoice.vibevoice.convert import authors_name as vibevoice_name
from stretto_vibevoice.vibevoice_asr.encoders import FOLDER, NETWORKS, RecordingEncoders
from stretto_vibevoice.vibevoice_asr.family import MARKERS, MAX_MODEL_LEN, NAME, AsrVocabulary

EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
HOP = 3200  # samples of a row, 7.5 rows/s
DECODER = "model.acoustic_tokenizer.decoder."  # in the authors' format
# Beginnings of names here, and of those that VibeVoice 1.5B has in transformers format.
VIBEVOICE_PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "acoustic_tokenizer_encoder.": "model.audio_tower.encoder.",
    "semantic_tokenizer_encoder.": "model.semantic_tokenizer_encoder.",
    "multi_modal_projector.acoustic_linear_": "model.multi_modal_projector.linear_",
    "multi_modal_projector.acoustic_norm.": "model.multi_modal_projector.act.",
    "multi_modal_projector.semantic_linear_": "model.semantic_connector.linear_",
    "multi_modal_projector.semantic_norm.": "model.semantic_connector.act.",
}
IDS = {"audio_token_id": "audio", "audio_bos_token_id": "begin", "audio_eos_token_id": "end"}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with the encoders in a separate folder."""
    is_authors = AUTHORS in contents.config
    config = from_authors(contents.config) if is_authors else contents.config
    check_value("model_type", config.get("model_type"), NAME)
    backbone = qwen2_backbone(entry(config, "text_config"), "text_config")
    ids = contents.tokenizer.ids_of(MARKERS.values(), backbone.vocab_size)
    if not is_authors:
        for key, field in IDS.items():
            check_value(key, config.get(key), ids[MARKERS[field]])
    sections = {name: dict(entry(config, f"{name}_tokenizer_encoder_config")) for name in NETWORKS}
    acoustic, semantic = (encoder_config(sections[name], name) for name in NETWORKS)
    vocabulary = AsrVocabulary(
        num_ids=backbone.vocab_size,
        **{field: ids[name] for field, name in MARKERS.items()},
        max_model_len=min(MAX_MODEL_LEN, backbone.max_position_embeddings),
    )
    record = {
        "architectures": ["StrettoQwen2ForCausalLM"],
        **llama_numbers(backbone),
        **common_record(NAME, vocabulary, vocabulary.num_ids, contents, has_head=True),
        KEY: {"model_type": NAME, "acoustic_size": acoustic.size, "semantic_size": semantic.size},
    }
    name_of: Callable[[str], str] = authors_name if is_authors else str
    encoders = {name_of(name): tensor for name, tensor in encoders_plan(acoustic, semantic).items()}
    parts = plan(llama_numbers(backbone), backbone.vocab_size, acoustic, semantic)
    return Converted(
        record,
        {name_of(name): tensor for name, tensor in parts.items()},
        (DECODER,) if is_authors else (),
        networks=(Network("codec", {}, {}), Network(FOLDER, sections, encoders)),
    )


def from_authors(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a config.json from the authors' format to transformers format, without token ids."""
    check_value("model_type", config.get("model_type"), "vibevoice")
    return {
        "model_type": NAME,
        "text_config": entry(config, "decoder_config"),
        "acoustic_tokenizer_encoder_config": network_from_authors(config, AUTHORS),
        "semantic_tokenizer_encoder_config": network_from_authors(config, AUTHORS_SEMANTIC),
    }


def authors_name(name: str) -> str:
    """Convert a tensor name in transformers format to the authors' name."""
    ours, speakers = next(names for names in VIBEVOICE_PREFIXES.items() if name.startswith(names[0]))
    return vibevoice_name(speakers + name.removeprefix(ours))


def encoder_config(section: Mapping[str, Any], name: str) -> TokenizerConfig:
    """Return an encoder's hyperparameters; raise CheckpointError if it does not have HOP samples per row."""
    path = f"{name}_tokenizer_encoder_config"
    config = TokenizerConfig.from_record(section, path)
    if config.hop != HOP:
        raise CheckpointError(f"{path}.downsampling_ratios: expected a product of {HOP}, got {config.hop}")
    return config


def plan(llama: Mapping[str, Any], num_ids: int, acoustic: TokenizerConfig, semantic: TokenizerConfig) -> Plan:
    """Return the language-model tensors to write, keyed by published name."""
    width = llama["hidden_size"]
    parts: Plan = {
        EMBEDDINGS: Part("model.embed_tokens.weight", (num_ids, width)),
        HEAD: Part("lm_head.weight", (num_ids, width)),
    }
    layers = {name.removeprefix("model."): shape for name, shape in shapes(dict(llama)).items()}
    parts |= layers_plan(layers, "language_model.model.")
    for name, encoder in zip(NETWORKS, (acoustic, semantic), strict=True):
        published = f"multi_modal_projector.{name}_"
        parts |= linear(f"{published}linear_1.", f"adaptor.{name}.linear_1.", width, encoder.size)
        parts |= linear(f"{published}linear_2.", f"adaptor.{name}.linear_2.", width, width)
        parts[f"{published}norm.weight"] = Part(f"adaptor.{name}.act.weight", (width,))
    return parts


def encoders_plan(acoustic: TokenizerConfig, semantic: TokenizerConfig) -> Plan:
    """Return the tensors of the encoders to write, keyed by published name."""
    with torch.device("meta"):
        tensors = RecordingEncoders(acoustic, semantic).state_dict()
    parts: Plan = {}
    for ours, tensor in tensors.items():
        network, _, within = ours.partition(".")
        published = published_name(f"encoder.{within}").removeprefix("encoder.")
        parts[f"{network}_tokenizer_encoder.{published}"] = Part(ours, tuple(tensor.shape))
    return parts
