"""Conversion of Higgs Audio v3: mismatches give a clear one-line message, and the published sizes add up."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HiggsAudioV2TokenizerConfig

from plugins.higgs_audio.lab.random_higgs_audio_v3 import TAGS, language_model, tensors, write_release
from plugins.higgs_audio.tests.higgs_audio_v3_release import command, convert_release
from stretto.codecs.base import load_codec
from stretto.codecs.higgs import HiggsModel
from stretto.family.conversion import Tokenizer
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.weights.loading import open_tensors
from stretto_higgs_audio.higgs_audio_v3.convert import (
    CODEC,
    CODEC_CONFIG,
    CODES,
    TEXTS,
    codec_network,
    plan,
    read_config,
    vocabulary,
)
from stretto_higgs_audio.higgs_audio_v3.family import MARKERS, HiggsAudioV3Vocabulary
from tests.refused_conversion import Edit, Refuses, check_tensor_errors, edited

# config.json of bosonai/higgs-tts-3-4b as third parties have recorded it, without the keys that are not read.
PUBLISHED: dict[str, Any] = {
    "model_type": "higgs_multimodal_qwen3",
    "audio_encoder_config": {
        "encoder_type": "discrete",
        "num_codebooks": 8,
        "vocab_size": 1026,
        "out_dim": 2560,
        "tie_word_embeddings": True,
        "use_delay_pattern": True,
    },
    "text_config": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    },
}
NUM_PUBLISHED = 4_654_850_537  # parameters in the file, as third parties have counted them


def test_published_sizes_add_up() -> None:
    """The tensors of the plan, the copies of the tied tables and one tensor of the codec are the whole file."""
    config = read_config(PUBLISHED)
    tokens = Tokenizer(Path(), 151_670, {token_id: name for name, token_id in MARKERS.items()})
    known = vocabulary(config, 8, 1026, tokens)
    assert known == HiggsAudioV3Vocabulary()
    parts = plan(config, known) | codec_network(PUBLISHED, known).plan
    assert len(parts) + 1 == 927  # names in the published index
    stored = {name: prod(part.stored) for name, part in parts.items()}
    assert sum(stored.values()) + stored[TEXTS] + stored[CODES] + 768 == NUM_PUBLISHED
    assert sum(name.startswith(CODEC) for name in parts) + 1 == 528
    assert sum(name.startswith("body.layers.") for name in parts) == 396


def test_tables_and_codec_are_written(tmp_path: Path) -> None:
    checkpoint, published = convert_release(tmp_path), tensors()
    (shard,) = checkpoint.glob("model-*.safetensors")
    written = open_tensors(shard)
    assert torch.equal(written["model.embed_tokens.weight"], torch.cat([published[TEXTS], published[CODES]]))
    assert torch.equal(written["audio_head.weight"], published[CODES])
    assert {*written} == {
        "audio_head.weight",
        "model.embed_tokens.weight",
        *(name.replace("body.", "model.") for name in language_model() if name.startswith("body.")),
    }
    known = HiggsAudioV3Vocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    assert known.tags == family_at(checkpoint).tags == TAGS
    codec: Any = load_codec("higgs", checkpoint)
    assert codec.can_encode
    for name, tensor in codec.model.state_dict().items():
        assert torch.equal(tensor, published[f"{CODEC}{name}"]), name


def test_codec_is_that_of_the_earlier_release_without_a_config() -> None:
    found = codec_network(PUBLISHED, HiggsAudioV3Vocabulary()).record
    default = HiggsAudioV2TokenizerConfig.from_dict(CODEC_CONFIG).to_dict()
    assert found == default | {"architectures": ["HiggsAudioV2TokenizerModel"]}
    assert HiggsModel.config_class.from_dict(found).num_quantizers == 8


def test_missing_rope_theta_is_that_of_qwen3(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    for key, value in (("rope_parameters", None), ("rope_theta", None)):
        with edited(release / "config.json") as config:
            config["text_config"][key] = value
    with edited(release / "config.json") as config:
        pass
    assert read_config(config).rope_parameters["rope_theta"] == 1_000_000


def setting(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a value in a nested record."""

    def change(record: dict[str, Any]) -> None:
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = value

    return change


AUDIO, TEXT, ROWS = "audio_encoder_config", "text_config", "max_position_embeddings"


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("config.json", setting("model_type", value="qwen3"), "model_type: expected 'higgs_multimodal_qwen3'"),
        ("config.json", lambda record: record.pop(AUDIO), "audio_encoder_config"),
        ("config.json", setting(AUDIO, "encoder_type", value="whisper"), "encoder_type: expected 'discrete'"),
        ("config.json", setting(AUDIO, "tie_word_embeddings", value=False), "tie_word_embeddings: expected True"),
        ("config.json", setting(AUDIO, "use_delay_pattern", value=False), "use_delay_pattern: expected True"),
        ("config.json", setting(AUDIO, "out_dim", value=32), "out_dim: expected 64, got 32"),
        ("config.json", setting(AUDIO, "num_codebooks", value="8"), "num_codebooks: expected an integer in [2, 64]"),
        ("config.json", setting(AUDIO, "num_codebooks", value=65), "num_codebooks: expected an integer in [2, 64]"),
        ("config.json", setting("codec_config", "acoustic_model_config", "n_codebooks", value=1 << 63), "at most 1024"),
        ("config.json", setting(AUDIO, "vocab_size", value=1 << 17), "vocab_size: expected an integer in [3, 65536]"),
        ("config.json", setting(AUDIO, "num_codebooks", value=4), "expected 4 codebooks of 1024 codes"),
        ("config.json", setting(AUDIO, "vocab_size", value=2), "vocab_size: expected an integer in [3, 65536]"),
        ("config.json", setting(TEXT, ROWS, value=-5), "max_position_embeddings: expected a positive finite number"),
        ("config.json", setting(TEXT, ROWS, value=19), "max_position_embeddings: expected at least 20 rows, got 19"),
        ("config.json", setting(TEXT, "rms_norm_eps", value=float("nan")), "rms_norm_eps: expected a positive finite"),
        ("config.json", setting(TEXT, "rms_norm_eps", value=0.0), "rms_norm_eps: expected a positive finite number"),
        ("config.json", setting(TEXT, "model_type", value="qwen2"), "model_type: expected 'qwen3', got 'qwen2'"),
        ("config.json", setting(TEXT, "attention_bias", value=True), "attention_bias: expected False, got True"),
        ("config.json", setting(TEXT, "hidden_act", value="gelu"), "hidden_act: expected 'silu', got 'gelu'"),
        ("config.json", setting(TEXT, "use_sliding_window", value=True), "use_sliding_window: expected False"),
        ("config.json", setting(TEXT, "num_key_value_heads", value=3), "to be a multiple of num_key_value_heads"),
        ("config.json", setting(TEXT, "intermediate_size", value=32), "tensors do not match: wrong shape"),
        ("config.json", setting("codec_config", "codebook_dim", value="a"), "codec_config: invalid parameters"),
        (
            "config.json",
            setting("codec_config", "semantic_sample_rate", value=0),
            "expected (24000, 16000), got (24000, 0)",
        ),
        (
            "config.json",
            setting("codec_config", "downsample_factor", value=999),
            "downsample_factor: expected at least 1",
        ),
        ("config.json", setting("codec_config", "codebook_dim", value=4), "wrong shape: tied.embedding"),
        ("tokenizer.json", lambda record: record["added_tokens"].pop(6), "without <|text|>"),
    ],
)
def test_error_names_mismatched_contents(file: str, edit: Edit, message: str, tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    with edited(release / file) as content:
        edit(content)
    refuses([*command(release), "--out", str(tmp_path / "out")], message)


@pytest.mark.parametrize("name", ["body.layers.1.self_attn.q_norm.weight", CODES, f"{CODEC}fc2.weight"])
def test_error_names_the_tensor(name: str, tmp_path: Path, refuses: Refuses) -> None:
    release = write_release(tmp_path / "release")
    words = [*command(release), "--out", str(tmp_path / "out")]
    check_tensor_errors(words, release / "model.safetensors", name, refuses)
