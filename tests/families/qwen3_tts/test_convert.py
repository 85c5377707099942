"""Conversion of Qwen3-TTS: mismatches are reported and nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lab.releases.random_qwen3_tts import small_config, write_release
from stretto.convert.command import main
from stretto.encoders.x_vector import load_speaker_encoder
from stretto.family.plugin import family_at
from stretto.testing.releases import Edit, edited
from tests.published_qwen3_tts import command
from tests.refused_conversion import Refuses

DEPTH = "talker.code_predictor."


def test_missing_fine_tune_settings_use_the_authors_defaults(tmp_path: Path) -> None:
    """The defaults are `hidden_act` silu, no attention bias, and speakers without dialects."""
    config = small_config()
    folder = write_release(tmp_path / "release", config)
    talker = config["talker_config"]
    assert talker.pop("spk_is_dialect")
    for part in (talker, talker["code_predictor_config"]):
        assert (part.pop("hidden_act"), part.pop("attention_bias")) == ("silu", False)
    (folder / "config.json").write_text(json.dumps(config))
    assert main(command(folder, tmp_path / "out")) == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["speech_vocabulary"]["dialects"] == {}
    talker["spk_is_dialect"] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert main(command(folder, tmp_path / "again")) == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda config: config["talker_config"].update(hidden_act="gelu"),
            "hidden_act: expected 'silu', got 'gelu'",
        ),
        (lambda config: config.update(tts_pad_token_id=330), "tts_pad_token_id: expected an id in [0, 330), got 330"),
        (
            lambda config: config["talker_config"].update(spk_id={"ryan": 9999}),
            "spk_id.ryan: expected an id in [0, 1056)",
        ),
        (
            lambda config: config["talker_config"].update(vocab_size=2000),
            "vocab_size: expected 32 codes and 1024 markers",
        ),
        (lambda config: config["talker_config"].update(num_code_groups=5), "num_code_groups: expected 4, got 5"),
        (
            lambda config: config["talker_config"].update(num_key_value_heads=3),
            "talker_config.num_attention_heads: expected a multiple of 3 (num_key_value_heads), got 4",
        ),
        (
            lambda config: config.update(tts_model_type="base"),
            "speaker_encoder_config: expected a speaker encoder's parameters",
        ),
        (
            lambda config: config.update(tts_model_type="base", speaker_encoder_config={"enc_dim": 8}),
            "speaker_encoder_config.enc_dim: expected 64, the talker's width, got 8",
        ),
        (
            lambda config: config.update(tts_model_type="base", speaker_encoder_config={"enc_dim": 64, "depth": 3}),
            "speaker_encoder_config: expected a speaker encoder's parameters",
        ),
        (
            lambda config: config.update(tts_model_type="base", speaker_encoder_config={"enc_dim": 64}),
            "missing: speaker_encoder.asp.conv.bias",
        ),
        (lambda config: config.update(tokenizer_type="qwen3_tts_tokenizer_25hz"), "tokenizer_type: expected"),
        (
            lambda config: config["talker_config"].update(spk_is_dialect={"ryan": "klingon"}),
            "talker_config.spk_is_dialect.ryan: expected a language, got 'klingon'",
        ),
        (
            lambda config: config["talker_config"]["rope_scaling"].update(mrope_section=[8, 8, 8]),
            "rope_scaling.mrope_section: expected integers with sum 16, half the head_dim, got [8, 8, 8]",
        ),
    ],
)
def test_unsupported_qwen3_tts_configs_are_refused(tmp_path: Path, refuses: Refuses, edit: Edit, message: str) -> None:
    folder = write_release(tmp_path)
    with edited(folder / "config.json") as config:
        edit(config)
    refuses(command(folder, folder / "out"), message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{DEPTH}lm_head.2.weight", f"missing: {DEPTH}lm_head.2.weight"),
        (f"{DEPTH}model.layers.1.self_attn.q_norm.weight", "missing: "),
        ("talker.text_projection.linear_fc1.bias", "missing: "),
    ],
)
def test_error_names_missing_tensors(tmp_path: Path, refuses: Refuses, name: str, message: str) -> None:
    folder = write_release(tmp_path)
    with edited(folder / "model.safetensors") as tensors:
        tensors["stranger"] = tensors.pop(name)
    refuses(command(folder, folder / "out"), message, "unknown: stranger")


def test_a_tokenizer_with_other_special_tokens_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    folder = write_release(tmp_path)
    with edited(folder / "tokenizer_config.json") as record:
        del record["added_tokens_decoder"]["312"]
    refuses(command(folder, folder / "out"), "added token '<tts_pad>': expected the next id")


def test_smaller_model_has_speakers_and_accepts_instructions(tmp_path: Path) -> None:
    config = small_config()
    config["tts_model_size"] = "0b6"
    folder = write_release(tmp_path, config)
    assert main(command(folder, folder / "out")) == 0
    family = family_at(folder / "out")
    assert family.voices == ("ryan", "eric")
    assert "instruct" in family.options
    assert not json.loads((folder / "out" / "config.json").read_text())["speech_vocabulary"]["takes_instructions"]


@pytest.mark.parametrize(("size", "follows"), [("0b6", False), ("1b7", True), ("b6", True), ("", True)])
def test_only_the_small_model_ignores_instructions(tmp_path: Path, size: str, follows: bool) -> None:
    config = small_config()
    config["tts_model_size"] = size
    folder = write_release(tmp_path, config)
    assert main(command(folder, folder / "out")) == 0
    assert (
        json.loads((folder / "out" / "config.json").read_text())["speech_vocabulary"]["takes_instructions"] is follows
    )


def test_base_release_conversion_writes_its_speaker_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config("base")
    folder = write_release(tmp_path, config)
    assert main(command(folder, folder / "out")) == 0
    said = capsys.readouterr().out
    assert "speaker_encoder/model.safetensors" in said
    assert "not needed" not in said
    family = family_at(folder / "out")
    assert (family.tasks[0].system, family.options, family.voices) == (("text", "audio"), (), ())
    speaker, published = load_speaker_encoder(folder / "out"), load_file(folder / "model.safetensors")
    assert speaker is not None
    for name, tensor in speaker.network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), published[f"speaker_encoder.{name}"])


def test_speaker_encoders_are_refused_by_other_model_types(tmp_path: Path, refuses: Refuses) -> None:
    config = small_config("base")
    folder = write_release(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config | {"tts_model_type": "voice_design"}))
    refuses(command(folder, folder / "out"), "unknown: speaker_encoder.asp.conv.bias")


@pytest.mark.parametrize(("speakers", "silent_frames"), [({"Ryan": 3061, "eric": 2875}, 1), ({"ryan": 3060}, 0)])
def test_replies_of_the_published_speakers_begin_with_silence(
    tmp_path: Path, speakers: dict[str, int], silent_frames: int
) -> None:
    config = small_config(codes=2048)
    config["talker_config"] |= {"spk_id": speakers, "spk_is_dialect": {}}
    folder = write_release(tmp_path, config)
    assert main(command(folder, folder / "out")) == 0
    record = json.loads((folder / "out" / "config.json").read_text())
    assert record["speech_vocabulary"]["silent_frames"] == silent_frames
