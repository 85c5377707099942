"""Conversion of the talker in a Qwen3-Omni release: mismatches are reported and nothing is written."""

from pathlib import Path

import pytest

from plugins.qwen3_omni.lab.random_qwen3_omni import write_release
from plugins.qwen3_omni.tests.published_qwen3_omni import command
from stretto.codecs.base import load_codec
from stretto.convert.command import main
from stretto.family.plugin import config_at
from tests.refused_conversion import Edit, Refuses, edited

EXPERT = "talker.model.layers.1.mlp.experts.5.down_proj.weight"
SECOND = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda config: config.update(model_type="qwen3_tts"),
            "model_type: expected 'qwen3_omni_moe', got 'qwen3_tts'",
        ),
        (
            lambda config: config["talker_config"].update(speaker_id={"ethan": -1}),
            "speaker_id.ethan: expected an id in [0, 1056)",
        ),
        (lambda config: config["talker_config"].update(num_code_groups=3), "num_code_groups: expected 4, got 3"),
        (
            lambda config: config["talker_config"]["text_config"].update(vocab_size=2000),
            "expected 32 codes and 1024 markers",
        ),
        (
            lambda config: config["talker_config"]["code_predictor_config"].update(hidden_size=32),
            "talker_config.code_predictor_config.hidden_size: expected 64, got 32",
        ),
        (lambda config: config["talker_config"]["text_config"].update(num_experts=7), "missing: talker.model.layers.0"),
        (
            lambda config: config["code2wav_config"].update(decoder_dim=30),
            "code2wav_config: decoder_config.decoder_dim must be a multiple of 16, got 30",
        ),
        (
            lambda config: config["code2wav_config"].update(codebook_size=64),
            "code2wav_config: expected 4 codebooks of 32 codes, the talker's, got (4, 64)",
        ),
        (
            lambda config: config["thinker_config"].update(audio_token_id=330),
            "thinker_config.audio_token_id: expected an id in [0, 330), got 330",
        ),
    ],
)
def test_unsupported_talker_config_is_refused(tmp_path: Path, refuses: Refuses, edit: Edit, message: str) -> None:
    folder = write_release(tmp_path)
    with edited(folder / "config.json") as config:
        edit(config)
    refuses(command(folder, folder / "out"), message)


def test_config_of_transformers_5_is_converted(tmp_path: Path) -> None:
    """Its `rope_parameters` and `num_local_experts` replace older keys."""
    folder = write_release(tmp_path / "release")
    assert main(command(folder, tmp_path / "before")) == 0
    with edited(folder / "config.json") as config:
        talker = config["talker_config"]
        text = talker["text_config"]
        text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
        text["num_local_experts"] = text.pop("num_experts")
        for part in (talker["code_predictor_config"], config["code2wav_config"]):
            part["rope_parameters"] = {"rope_theta": part.pop("rope_theta"), "rope_type": "default"}
    assert main(command(folder, tmp_path / "after")) == 0
    after, before = (tmp_path / name / "talker" for name in ("after", "before"))
    assert config_at(after) == config_at(before)
    for name in ("model-00001-of-00001.safetensors", "codec/model.safetensors"):
        assert (tmp_path / "after" / "talker" / name).read_bytes() == (
            tmp_path / "before" / "talker" / name
        ).read_bytes()
    load_codec("qwen3_omni", tmp_path / "after" / "talker")


def test_error_names_missing_experts_and_unknown_tensors(tmp_path: Path, refuses: Refuses) -> None:
    folder = write_release(tmp_path)
    with edited(folder / SECOND) as tensors:
        tensors["talker.stranger"] = tensors.pop(EXPERT)
    refuses(command(folder, folder / "out"), f"missing: {EXPERT}", "unknown: talker.stranger")


def test_extracting_an_unsupported_codec_from_the_release_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    folder = write_release(tmp_path)
    expected = "a codec among the release's tensors must be one of mimi, xcodec; got qwen3_omni"
    refuses([*command(folder, folder / "out"), "--codec-from-model"], expected)
