"""Conversion of Moshi: releases that do not fit are refused by the field's name, and nothing is written."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoints.random_moshi import lm_shapes, write_release
from stretto.convert.command import main
from stretto.families.moshi.convert import FIRST, vocabulary
from stretto.families.moshi.family import DEPTH, MoshiVocabulary
from stretto.families.plugin import VOCABULARY, config_at
from tests.refused_conversion import Refuses, check_tensor_errors, edited


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("moshi"), num_layers=1, depformer_num_layers=1)


def words(release: Path, out: Path) -> list[str]:
    return ["moshi", "--model", str(release), "--out", str(out)]


def test_converted_config_matches_the_release(release: Path, tmp_path: Path) -> None:
    assert main(words(release, tmp_path / "out")) == 0
    config = config_at(tmp_path / "out")
    assert (config["sliding_window"], config["layer_types"]) == (24, ["sliding_attention"])
    assert (config["intermediate_size"], config["rms_norm_eps"], config["rope_theta"]) == (176, 1e-8, 10000.0)
    known = MoshiVocabulary.from_record(config[VOCABULARY])
    assert (known.num_text_ids, known.num_codebooks, known.codebook_size) == (96, 8, 64)
    assert (known.depth.hidden, known.depth.intermediate, known.depth.schedule) == (32, 88, tuple(range(8)))
    assert (tmp_path / "out" / "tokenizer.model").exists()


def test_first_moshi_releases_match_the_published_numbers() -> None:
    assert vocabulary(FIRST) == MoshiVocabulary()
    assert vocabulary(FIRST).depth == DEPTH
    assert len(lm_shapes(FIRST)) == 355  # tensors in the published file


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "hibiki"}, "config.json: model_type: expected 'moshi', got 'hibiki'"),
        ({"n_q": 8}, "config.json: n_q: expected 16, those of the model and as many of the user, got 8"),
        ({"norm": "layer_norm"}, "config.json: norm: expected 'rms_norm_f32', got 'layer_norm'"),
        ({"kv_repeat": 2}, "config.json: kv_repeat: expected 1, got 2"),
        ({"quantize": True}, "config.json: quantize: expected False, got True"),
        ({"lora_name": "lora.safetensors"}, "config.json: lora_name: expected no value, got 'lora.safetensors'"),
        ({"depformer_pos_emb": "sin"}, "config.json: depformer_pos_emb: expected 'none', got 'sin'"),
        ({"depformer_multi_linear": False}, "config.json: depformer_multi_linear: expected True, got False"),
        ({"depformer_low_rank_embeddings": 8}, "depformer_low_rank_embeddings: expected no value, got 8"),
        ({"delays": [0] * 9 + [0, *[1] * 7]}, "config.json: delays: expected 0, then twice 8 delays from 0 to 16"),
        ({"delays": [0, *[1] * 16]}, "config.json: delays: expected 0, then twice 8 delays from 0 to 16"),
        ({"depformer_num_heads": 5}, "config.json: depformer_dim: expected heads of an even width, got 32 for 5"),
        ({"depformer_weights_per_step_schedule": [0, 2] * 4}, "schedule: expected 8 numbers of sets, from 0 on"),
        ({"dim": "wide"}, "config.json: dim: expected an integer in [1, 1048576), got 'wide'"),
        ({"text_card": 95}, "expected a tokenizer of 95 tokens, got 96"),
        ({"card": 63}, "tensors do not match: wrong shape: "),
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
    "name",
    ["depformer_in.3.weight", "linears.7.weight", "depformer.layers.0.gating.5.linear_in.weight", "emb.15.weight"],
)
def test_missing_or_unknown_tensor_is_reported(copied: Path, tmp_path: Path, name: str, refuses: Refuses) -> None:
    check_tensor_errors(words(copied, tmp_path / "out"), copied / "model.safetensors", name, refuses)
