"""Conversion of the Bagpiper release: tensor names, vocabulary, audio encoder, and the copy of the codec.

Names and orders follow espnet2/speechlm/model/speechlm/{speechlm_job,lm/parallel,multimodal_io/audio}.py in
https://github.com/espnet/espnet.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError
from stretto.families.bagpiper.family import NUM_STREAMS, SPECIAL_TOKENS, BagpiperVocabulary
from stretto.family.conversion import Contents, Converted, Release, Tokenizer, unchanged
from stretto.family.log_mel_encoder import check_windows, tower_plan
from stretto.family.plugin import NAME, VOCABULARY
from stretto.untrusted_files import entry, optional_entry, read_json, released_file, yaml_mapping
from stretto.weights.backbones import config_of, shapes
from stretto.weights.loading import Part, Plan, require

NUM_SPECIAL = 256
TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."
CODEC = "multimodal_io_dict.discrete_audio.codec_model."
CODEBOOK = f"{CODEC}quantizer.quantizers.0.codebook.embed"
ADAPTOR = "adaptor.continuous_audio."
DROPPED = ("vocab_weight", CODEC)
# Audio tower of Qwen/Qwen3-Omni-30B-A3B-Instruct, which the release refers to.
QWEN3_OMNI: dict[str, Any] = {
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "activation_function": "gelu",
    "max_source_positions": 1500,
    "n_window": 50,
    "n_window_infer": 800,
    "conv_chunksize": 500,
    "downsample_hidden_size": 480,
    "output_dim": 2048,
}


BACKBONE_TAG = "model.model_hf_tag"
EMBEDDINGS = "model.embed_tokens.weight"


def located(release: Release) -> Release:
    """Return the release with the path of its training config, found among its YAML files if it is not given."""
    if release.config is not None:
        return release
    paths = [released_file(release.folder, path.name) for path in sorted(release.folder.glob("*.yaml"))]
    training_configs = [path for path in paths if optional_entry(yaml_mapping(path), BACKBONE_TAG) is not None]
    return replace(release, config=training_configs[0]) if len(training_configs) == 1 else release


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, which includes the audio encoder."""
    config = contents.config
    vocab = vocabulary(config, contents.tensors, contents.tokenizer, release.codec)
    audio = tower_config(config, release.audio_config, release.audio)
    record = config_of(contents.backbone, vocab.vocab_size, contents.dtype)
    record |= {NAME: "bagpiper", VOCABULARY: vocab.to_record(), "audio_config": audio}
    return Converted(record, plan(shapes(record), record["hidden_size"], audio), DROPPED)


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype in config.yaml, or None if there is none."""
    return optional_entry(config, "model.model_conf.dtype")


def vocabulary(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: Tokenizer, codec: Path | None
) -> BagpiperVocabulary:
    """Return the id ranges of text and codes; raise CheckpointError if config, tensors and tokenizer do not fit.

    Special tokens come first, followed by the discrete modalities in the order of `multimodal_io`.
    """
    audio = entry(config, "multimodal_io.discrete_audio")
    if audio.get("ssl_choice") is not None or audio.get("delay_interleave") is not True:
        raise CheckpointError(
            "config.yaml: multimodal_io.discrete_audio: expected delay_interleave true and no ssl_choice"
        )
    vocab_size = _rows(tensors, "model.embed_tokens.weight")
    size = _codebook_size(tensors, codec)
    audio_span = NUM_STREAMS * (size + 1)
    text_span = vocab_size - NUM_SPECIAL - audio_span
    if text_span < tokenizer.size:
        raise CheckpointError(
            f"{tokenizer.folder}: expected a tokenizer of at most {text_span} tokens ({vocab_size} ids without "
            f"{NUM_SPECIAL} special ids and {NUM_STREAMS} x {size + 1} codes), got {tokenizer.size}"
        )
    start = NUM_SPECIAL
    starts = {}
    for name in entry(config, "multimodal_io"):
        if name in ("text", "discrete_audio"):
            starts[name] = start
            start += text_span if name == "text" else audio_span
    if len(starts) != 2:
        raise CheckpointError(
            f"config.yaml: multimodal_io: expected text and discrete_audio, got {', '.join(starts) or 'neither'}"
        )
    text = (starts["text"], starts["text"] + text_span)
    return BagpiperVocabulary(vocab_size, text, starts["discrete_audio"], size)


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    require(tensors, {name: (None, None)})
    return tensors[name].shape[0]


def _codebook_size(tensors: Mapping[str, Tensor], codec: Path | None) -> int:
    """Return the codebook size of the codec in the release, or else of the codec in a separate folder."""
    if CODEBOOK in tensors:
        return _rows(tensors, CODEBOOK)
    if codec is None:
        raise CheckpointError(
            "--codec: required for the sizes of the codebooks, because the file contains no copy of the codec"
        )
    return read_json(codec)["codebook_size"]


def tower_config(config: Mapping[str, Any], path: Path | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `audio_config` for config.json; raise CheckpointError if the encoder is unknown or unsupported.

    Args:
        path: config.json of the audio encoder; None to use the Qwen3-Omni parameters.
        overrides: Values from the command line.
    """
    record: Mapping[str, Any] = QWEN3_OMNI
    if path is not None:
        record = read_json(path)
        record = record.get("thinker_config", record)
        record = {name: value for name, value in record.get("audio_config", record).items() if name in QWEN3_OMNI}
    else:
        tag = entry(config, "multimodal_io.continuous_audio.encoder_hf_model_tag")
        if tag != "Qwen/Qwen3-Omni-30B-A3B-Instruct":
            raise CheckpointError(
                f"audio encoder {tag}: unknown; name the file with its parameters with --audio-config"
            )
    check_windows(QWEN3_OMNI | {**record, **overrides})
    return {"model_type": "qwen3_omni_moe_audio_encoder", **record, **overrides}


def plan(language: Mapping[str, tuple[int, ...]], hidden: int, tower: Mapping[str, Any]) -> Plan:
    """Return the plan of tensors to write. The backbone's names are unchanged."""
    parts = unchanged(language)
    parts["stream_emb.weight"] = Part("stream_bias.weight", (NUM_STREAMS, hidden), _without_first_row)
    parts |= tower_plan(tower, TOWER)
    parts[f"{ADAPTOR}weight"] = Part("adaptor.weight", (hidden, tower["output_dim"]))
    parts[f"{ADAPTOR}bias"] = Part("adaptor.bias", (hidden,))
    return parts


def _without_first_row(table: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(table[:1]), table[1:]])


assert len(SPECIAL_TOKENS) < NUM_SPECIAL
