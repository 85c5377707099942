"""Conversion of Kyutai STT: refusals of releases that do not fit mention the field, and nothing is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.kyutai.lab.random_kyutai_stt import CONFIG, write_release
from plugins.kyutai.tests.kyutai_release import words
from stretto.convert.command import main
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.text import plain_tokenizer
from stretto.weights.loading import WHOLE, open_tensors
from stretto_kyutai.kyutai_stt.family import END_PAD, PAD, SttVocabulary
from stretto_kyutai.kyutai_stt.reader import open_text_codec
from stretto_kyutai.kyutai_stt.recognise import FEATURES, PROCESSOR
from tests.refused_conversion import Refuses, check_tensor_errors, edited
from tests.transformers_releases import assert_equal_checkpoints, write_stt

DELAYS = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("kyutai"), num_layers=1)


def test_converted_config_matches_the_release(release: Path, tmp_path: Path) -> None:
    assert main(words(release, tmp_path / "out")) == 0
    config = config_at(tmp_path / "out")
    assert config["sliding_window"] == 20
    assert config["layer_types"] == ["sliding_attention"]
    assert (config["intermediate_size"], config["rms_norm_eps"], config["rope_theta"]) == (176, 1e-8, 100000.0)
    known = SttVocabulary.from_record(config[VOCABULARY])
    assert known == SttVocabulary(96, 32, 64, 6, 0.5, 0.0, num_pauses=4, num_pause_classes=6)
    assert family_at(tmp_path / "out").pauses_s == (0.5, 1.0, 2.0, 3.0)
    assert (tmp_path / "out" / "tokenizer.model").exists()
    assert not list((tmp_path / "out").glob("tokenizer_en*"))


def test_release_without_pause_heads_converts(copied: Path, tmp_path: Path) -> None:
    weights = copied / WHOLE
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("extra_heads.")}, weights)
    assert main(words(copied, tmp_path / "out")) == 0
    assert family_at(tmp_path / "out").pauses_s == ()
    assert "pause_heads.weight" not in open_tensors(tmp_path / "out")


def test_attention_weights_of_newer_releases_convert(release: Path, copied: Path, tmp_path: Path) -> None:
    """They are in the first of several tensors."""
    weights = copied / WHOLE
    newer = {".in_proj_weight": ".in_projs.0.weight", ".out_proj.weight": ".out_projs.0.weight"}
    renamed = {
        next((name.replace(old, new) for old, new in newer.items() if old in name), name): tensor
        for name, tensor in load_file(weights).items()
    }
    assert sum(".in_projs." in name or ".out_projs." in name for name in renamed) == 2
    save_file(renamed, weights)
    for source, out in ((release, "older"), (copied, "newer")):
        assert main(words(source, tmp_path / out)) == 0
    older, found = (open_tensors(tmp_path / out) for out in ("older", "newer"))
    assert older.keys() == found.keys()
    assert all(torch.equal(older[name], found[name]) for name in older)


@pytest.mark.parametrize("version", [4, 5])
def test_release_in_transformers_format_gives_the_same_checkpoint(version: int, tmp_path: Path) -> None:
    """It was written by transformers' class, and has no pause heads."""
    changed = {"num_layers": 2, "extra_heads_num_heads": 0, "stt_config": DELAYS}
    releases = {
        "authors": write_release(tmp_path / "a", **changed),
        "transformers": write_stt(tmp_path / "t", version, **changed),
    }
    for name, release in releases.items():
        assert main(words(release, tmp_path / name)) == 0
    assert_equal_checkpoints(*(tmp_path / name for name in releases))
    reader = open_text_codec(family_at(tmp_path / "transformers"), tmp_path / "transformers").reader("asr")
    for token_id in [PAD, *plain_tokenizer(tmp_path / "transformers").encode("garden"), 1, 2]:
        assert reader.push(token_id) == ""
    assert reader.push(END_PAD) == "garden"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "kyutai_speech_to_text"}, "config.json: model_type: expected 'stt', got 'kyutai_speech_to"),
        ({"dep_q": 8}, "config.json: dep_q: expected 0, got 8"),
        ({"norm": "layer_norm"}, "config.json: norm: expected 'rms_norm_f32', got 'layer_norm'"),
        ({"kv_repeat": 2}, "config.json: kv_repeat: expected 1, got 2"),
        ({"quantize": True}, "config.json: quantize: expected False, got True"),
        ({"conditioners": {"cfg": {}}}, "config.json: conditioners: expected {}, got {'cfg': {}}"),
        ({"delays": [0] * 32 + [1]}, "config.json: delays: expected 33 zeros"),
        ({"dim": "wide"}, "config.json: dim: expected an integer in [1, 1048575], got 'wide'"),
        ({"num_heads": 3}, "config.json: dim: expected heads of an even width, got 64 for 3 heads"),
        ({"stt_config": {"audio_delay_seconds": -1}}, "audio_delay_seconds: expected seconds in [0, 10], got -1"),
        ({"hidden_scale": 1e9}, "config.json: hidden_scale: expected a number in [1, 64]"),
        ({"extra_heads_num_heads": 5}, "config.json: extra_heads_num_heads: expected at most 4, got 5"),
        ({"extra_heads_dim": 5}, "tensors do not match: wrong shape: extra_heads.1.weight [6, 64] instead of [5, 64]"),
        ({"text_card": 95}, "expected a tokenizer of 95 tokens, got 96"),
        ({"card": 63}, "tensors do not match: wrong shape: emb.0.weight [65, 64] instead of [64, 64]"),
        ({"tokenizer_name": "../tokenizer.model"}, "expected a file name without a folder, got '../tokenizer.model'"),
        ({"mimi_name": "/etc/passwd"}, "expected a file name without a folder, got '/etc/passwd'"),
    ],
)
def test_unsupported_release_config_is_refused(
    copied: Path, tmp_path: Path, changed: dict[str, Any], message: str, refuses: Refuses
) -> None:
    with edited(copied / "config.json") as config:
        config |= changed
    refuses(words(copied, tmp_path / "out"), message)


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        (WHOLE, "transformer.layers.0.norm2.alpha", "missing: transformer.layers.0.norm2.alpha"),
        (WHOLE, "emb.7.weight", "missing: emb.7.weight"),
        (WHOLE, "extra_heads.2.weight", "missing: extra_heads.2.weight"),
        (CONFIG["mimi_name"], "downsample.conv.conv.conv.weight", "missing: downsample.conv.weight"),
    ],
)
def test_missing_or_unknown_tensor_is_reported(
    copied: Path, tmp_path: Path, file: str, name: str, message: str, refuses: Refuses
) -> None:
    weights = copied / file
    tensors = load_file(weights)
    missing = {key: tensor for key, tensor in tensors.items() if key != name}
    for changed, expected in ((missing, message), (tensors | {"extra": torch.zeros(1)}, "unknown: extra")):
        save_file(changed, weights)
        refuses(words(copied, tmp_path / "out"), expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a release in transformers format."""
    return write_stt(tmp_path_factory.mktemp("transformers"), num_layers=1)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"model_type": "moshi"}, "config.json: model_type: expected 'kyutai_speech_to_text', got 'moshi'"),
    ("config.json", {"hidden_act": "gelu"}, "config.json: hidden_act: expected 'silu', got 'gelu'"),
    ("config.json", {"tie_word_embeddings": True}, "config.json: tie_word_embeddings: expected False, got True"),
    ("config.json", {"num_key_value_heads": 1}, "config.json: num_key_value_heads: expected 2, got 1"),
    ("config.json", {"head_dim": 16}, "config.json: head_dim: expected 32, got 16"),
    ("config.json", {"num_attention_heads": 3}, "hidden_size: expected heads of an even width, got 64 for 3 heads"),
    ("config.json", {"ffn_dim": 351}, "config.json: ffn_dim: expected an even integer, got 351"),
    ("config.json", {"audio_bos_token_id": 63}, "config.json: audio_bos_token_id: expected 64, got 63"),
    ("config.json", {"vocab_size": 96}, "expected a tokenizer of 95 tokens, got 96"),
    ("config.json", {"num_codebooks": 31}, "wrong shape: model.embed_tokens.embed_tokens.weight [2178, 64] instead"),
    ("config.json", {"rms_norm_eps": 0}, "config.json: rms_norm_eps: expected a positive number, got 0"),
    ("config.json", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type: expected 'default', got"),
    ("config.json", {"rope_parameters": {}}, "config.json: rope_parameters.rope_theta is missing"),
    ("config.json", {"rope_parameters": None}, "config.json: rope_theta is missing"),
    ("config.json", {"rope_parameters": None, "rope_scaling": {"factor": 2}}, "rope_scaling: expected no value, got"),
    ("config.json", {"codec_config": {"model_type": "dac"}}, "config.json: codec_config: expected a config of mimi"),
    ("config.json", {"codec_config": {"num_quantizers": 8}}, "codec_config: expected 32 codebooks of 64 codes, got 8"),
    ("config.json", {"codec_config": {"frame_size": 1}}, "codec_config: invalid parameters for mimi: "),
    (PROCESSOR, {"feature_extractor": {}}, f"{PROCESSOR}: feature_extractor.audio_delay_seconds is missing"),
    (PROCESSOR, {"feature_extractor": DELAYS | {"audio_delay_seconds": 11}}, "expected seconds in [0, 10], got 11"),
]


@pytest.mark.parametrize(("file", "changed", "message"), REFUSED)
def test_unsupported_config_of_transformers_is_refused(
    saved: Path, tmp_path: Path, file: str, changed: dict[str, Any], message: str, refuses: Refuses
) -> None:
    release = Path(shutil.copytree(saved, tmp_path / "saved"))
    with edited(release / file) as config:
        config |= changed
    refuses(words(release, tmp_path / "out"), message)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj.linear.weight", "lm_head.weight"])
def test_tensor_errors_of_transformers_have_its_names(saved: Path, tmp_path: Path, name: str, refuses: Refuses) -> None:
    release = Path(shutil.copytree(saved, tmp_path / "saved"))
    check_tensor_errors(words(release, tmp_path / "out"), release / WHOLE, name, refuses)


def test_release_of_transformers_without_delays_is_refused(saved: Path, tmp_path: Path, refuses: Refuses) -> None:
    release = Path(shutil.copytree(saved, tmp_path / "saved"))
    (release / PROCESSOR).unlink()
    refuses(words(release, tmp_path / "out"), f"{FEATURES} is missing")
