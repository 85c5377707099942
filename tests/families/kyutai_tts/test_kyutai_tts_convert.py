"""Conversion of Kyutai TTS: releases that do not fit are refused by the field's name, and nothing is written."""

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints.random_kyutai_tts import CONFIG, write_release
from stretto.convert.command import main
from stretto.families.kyutai_tts.family import TtsVocabulary
from stretto.families.plugin import VOCABULARY, config_at, family_at

SMALL = {"num_layers": 1, "depformer_num_layers": 1}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("kyutai_tts"), **SMALL)


def convert(release: Path, out: Path) -> int:
    return main(["kyutai-tts", "--model", str(release), "--out", str(out)])


def copy(release: Path, folder: Path) -> None:
    for path in release.iterdir():
        shutil.copy(path, folder / path.name)


def write_wav(path: Path, seconds: float = 1.5, rate: int = 24_000, channels: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.zeros(int(seconds * rate) * channels, "<i2").tobytes())


def test_checkpoint_keeps_release_parameters_and_voices(release: Path, tmp_path: Path) -> None:
    copy(release, tmp_path)
    write_wav(tmp_path / "voices" / "Alba.wav")
    assert convert(tmp_path, tmp_path / "out") == 0
    config = config_at(tmp_path / "out")
    assert (config["sliding_window"], config["layer_types"]) == (40, ["sliding_attention"])
    known = TtsVocabulary.from_record(config[VOCABULARY])
    assert (known.num_text_ids, known.num_codebooks, known.codebook_size, known.delay_rows) == (96, 8, 64, 5)
    assert known.delays == (0, *[2] * 7)
    assert family_at(tmp_path / "out").voices == ("alba",)
    assert (tmp_path / "out" / "voices" / "alba.wav").exists()


def test_wish_token_embedding_equals_pad_embedding(release: Path, tmp_path: Path) -> None:
    assert convert(release, tmp_path / "out") == 0
    tensors = load_file(next((tmp_path / "out").glob("*.safetensors")))
    known = TtsVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY])
    for name in ("model.embed_tokens.weight", "depth.embed"):
        assert torch.equal(tensors[name][known.wish_id], tensors[name][3])
    assert not tensors["model.embed_tokens.weight"][known.nothing].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "moshi"}, "config.json: model_type: expected 'tts', got 'moshi'"),
        ({"n_q": 9}, "config.json: n_q: expected 8, as dep_q, got 9"),
        ({"norm": "layer_norm"}, "config.json: norm: expected 'rms_norm_f32', got 'layer_norm'"),
        ({"kv_repeat": 2}, "config.json: kv_repeat: expected 1, got 2"),
        ({"quantize": True}, "config.json: quantize: expected False, got True"),
        ({"lora_name": "lora.safetensors"}, "config.json: lora_name: expected no value, got 'lora.safetensors'"),
        ({"depformer_pos_emb": "sin"}, "config.json: depformer_pos_emb: expected 'none', got 'sin'"),
        ({"cross_attention": True}, "config.json: cross_attention: expected False, got True"),
        ({"demux_second_stream": True}, "config.json: demux_second_stream: expected False, got True"),
        ({"conditioners": {"cfg": {"type": "lut"}}}, "config.json: conditioners: expected {}, got {'cfg': "),
        ({"fuser": {"sum": ["cfg"], "cross": []}}, "config.json: fuser: expected {}"),
        ({"depformer_low_rank_embeddings": 8}, "depformer_low_rank_embeddings: expected no value, got 8"),
        ({"delays": [0] * 8}, "config.json: delays: expected 0, then 8 delays from 0 to 64, the first of them 0"),
        ({"delays": [1, 0, *[2] * 7]}, "config.json: delays: expected 0, then 8 delays from 0 to 64"),
        ({"tts_config": {"audio_delay": -1}}, "tts_config.audio_delay: expected seconds in [0, 5.12], got -1"),
        ({"tts_config": {"audio_delay": "1"}}, "tts_config.audio_delay: expected seconds in [0, 5.12], got '1'"),
        (
            {"tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2}},
            "tts_config.second_stream_ahead: expected 0, got 2",
        ),
        ({"tts_config": {"audio_delay": 1.28, "multistream": True}}, "tts_config.multistream: expected 0, got True"),
        ({"text_card": 95}, "expected a tokenizer of 95 tokens, got 96"),
        ({"card": 63}, "tensors do not match: wrong shape: "),
        ({"tokenizer_name": "../tokenizer.model"}, "expected a file name without a folder, got '../tokenizer.model'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    release: Path, tmp_path: Path, changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(release, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **SMALL, **changed}))
    assert convert(tmp_path, tmp_path / "out") != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["depformer_in.3.weight", "linears.7.weight", "depformer_emb.6.weight", "text_linear.weight", "emb.7.weight"],
)
def test_a_missing_or_unknown_tensor_is_named(
    release: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(release, tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    for changed, expected in (
        ({key: value for key, value in tensors.items() if key != name}, f"missing: {name}"),
        (tensors | {"extra": torch.zeros(1)}, "unknown: extra"),
        (tensors | {name: torch.zeros(3, 3)}, f"wrong shape: {name} [3, 3]"),
    ):
        save_file(changed, weights)
        assert convert(tmp_path, tmp_path / "out") != 0
        assert expected in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"rate": 16_000}, "expected 1 channel of 16 bits at 24000 Hz, got (1, 16, 16000)"),
        ({"channels": 2}, "expected 1 channel of 16 bits at 24000 Hz, got (2, 16, 24000)"),
        ({"seconds": 0.5}, "alba.wav: expected 1 to 30 s, got 0.50 s"),
        ({"seconds": 31}, "alba.wav: expected 1 to 30 s, got 31.00 s"),
    ],
)
def test_unusable_voice_wav_is_refused(
    release: Path, tmp_path: Path, shape: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(release, tmp_path)
    write_wav(tmp_path / "voices" / "alba.wav", **shape)
    assert convert(tmp_path, tmp_path / "out") != 0
    assert message in " ".join(capsys.readouterr().err.split())
    (tmp_path / "voices" / "alba.wav").write_bytes(b"RIFF")
    assert convert(tmp_path, tmp_path / "out") != 0
    assert "alba.wav: expected a WAV file" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
