"""Conversion of Moshi: releases that do not fit are refused by the field's name, and nothing is written."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.kyutai.lab.random_moshi import CONFIG, lm_shapes, write_release
from plugins.kyutai.tests.moshi_release import replies
from stretto.convert.command import main
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.text import plain_tokenizer
from stretto_kyutai.kyutai_stt.family import PAD
from stretto_kyutai.moshi.convert import FIRST, vocabulary
from stretto_kyutai.moshi.family import DEPTH, MoshiVocabulary
from stretto_kyutai.moshi.reader import open_text_codec
from tests.refused_conversion import Refuses, check_tensor_errors, edited
from tests.transformers_releases import assert_equal_checkpoints, moshi_model, write_moshi


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
        ({"dim": "wide"}, "config.json: dim: expected an integer in [1, 1048575], got 'wide'"),
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


def test_release_in_transformers_format_gives_the_same_checkpoint(tmp_path: Path) -> None:
    """It was written by transformers' class."""
    changed = {"num_layers": 2, "depformer_num_layers": 2}
    releases = {"authors": write_release(tmp_path / "a", **changed), "saved": write_moshi(tmp_path / "t", **changed)}
    for name, release in releases.items():
        assert main(words(release, tmp_path / name)) == 0
    assert_equal_checkpoints(*(tmp_path / name for name in releases))
    reader = open_text_codec(family_at(tmp_path / "saved"), tmp_path / "saved").reader("duplex")
    pieces = plain_tokenizer(tmp_path / "saved").encode("the door")
    assert "".join(map(reader.push, [PAD, *pieces, PAD])) + reader.end() == "the door"


def test_transformers_class_gives_the_authors_reply(tmp_path: Path) -> None:
    """In one pass over the authors' greedy reply, whose rows it reads as its own."""
    found, window, size = replies(), CONFIG["context"], CONFIG["card"]
    user, frames = found["user"][0].astype(np.int64), found["frames"][0].astype(np.int64)
    model = moshi_model(write_release(tmp_path / "release"), CONFIG)

    def delayed(codes: np.ndarray) -> torch.Tensor:
        """Return codes [K, T] after the row of initial ids, the first codebook one row before the others."""
        initial = np.full((len(codes), 2), size)
        rows = np.concatenate([initial, codes], 1)
        return torch.from_numpy(np.concatenate([rows[:1, 1:-1], rows[1:, :-2]]))

    text = torch.from_numpy(np.concatenate([[CONFIG["text_card"]], frames[:-1, 0]]))
    codes = torch.cat([delayed(frames[:, 1:].T), delayed(user)])
    ages = torch.arange(len(text))[:, None] - torch.arange(len(text))
    mask = ((ages >= 0) & (ages < window))[None, None]
    with torch.inference_mode():
        embedded = model.decoder.model.embed_tokens(text)
        embedded += sum(table(each) for table, each in zip(model.embed_tokens, codes, strict=True))
        hidden = model.decoder.model(inputs_embeds=embedded[None], attention_mask=mask).last_hidden_state[0]
        assert model.decoder.lm_head(hidden).argmax(-1).tolist() == frames[:, 0].tolist()
        row = torch.from_numpy(np.concatenate([frames[:, :2], np.roll(frames[:, 2:], 1, 0)], 1))
        steps = model.depth_decoder(row[:, :-1], hidden[:, None]).logits.argmax(-1)
    assert (steps == row[:, 1:])[1:].all(), "the first row has codes of the frame before the first"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a release in transformers format."""
    return write_moshi(tmp_path_factory.mktemp("transformers"), num_layers=1, depformer_num_layers=1)


@pytest.mark.parametrize(
    ("changed", "depth", "message"),
    [
        ({"hidden_act": "gelu"}, {}, "config.json: hidden_act: expected 'silu', got 'gelu'"),
        ({"num_codebooks": 4}, {}, "depth_decoder_config.num_codebooks: expected 4, got 8"),
        ({"num_codebooks": 300}, {}, "config.json: num_codebooks: expected an integer in [1, 255], got 300"),
        ({"audio_vocab_size": 63}, {}, "audio_encoder_config: expected 8 codebooks of 63 codes, got 32 of 64"),
        ({"vocab_size": 95}, {}, "expected a tokenizer of 95 tokens, got 96"),
        ({"depth_decoder_config": None}, {}, "config.json: depth_decoder_config.hidden_size is missing"),
        ({}, {"hidden_act": "gelu"}, "depth_decoder_config.hidden_act: expected 'silu', got 'gelu'"),
        ({}, {"num_key_value_heads": 2}, "depth_decoder_config.num_key_value_heads: expected 4, got 2"),
        ({}, {"num_attention_heads": 5}, "depth_decoder_config.hidden_size: expected heads of an even width, got 32"),
        ({}, {"sliding_window": 7}, "depth_decoder_config.sliding_window: expected at least the 8 steps of a frame"),
        ({}, {"ffn_dim": 175}, "config.json: depth_decoder_config.ffn_dim: expected an even integer, got 175"),
    ],
)
def test_unsupported_config_of_transformers_is_refused(
    saved: Path, tmp_path: Path, changed: dict[str, Any], depth: dict[str, Any], message: str, refuses: Refuses
) -> None:
    release = Path(shutil.copytree(saved, tmp_path / "saved"))
    with edited(release / "config.json") as config:
        config["depth_decoder_config"] |= depth
        config |= changed
    refuses(words(release, tmp_path / "out"), message)


@pytest.mark.parametrize(
    "name", ["embed_tokens.15.weight", "depth_decoder.embed_tokens.6.weight", "depth_decoder.layers.0.mlp.fc2.weight"]
)
def test_tensor_errors_of_transformers_have_its_names(saved: Path, tmp_path: Path, name: str, refuses: Refuses) -> None:
    release = Path(shutil.copytree(saved, tmp_path / "saved"))
    check_tensor_errors(words(release, tmp_path / "out"), release / "model.safetensors", name, refuses)
