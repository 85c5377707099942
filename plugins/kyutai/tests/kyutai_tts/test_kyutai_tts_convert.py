"""Conversion of Kyutai TTS: releases that do not fit are refused by the field's name, and nothing is written."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plugins.kyutai.lab.kyutai_tts_replies import REDUCED
from plugins.kyutai.lab.random_kyutai_tts import CONFIG, write_release
from stretto.convert.command import main
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto_kyutai.kyutai_tts.family import TtsVocabulary
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript
from tests.refused_conversion import Refuses, check_tensor_errors, edited

SMALL = {"num_layers": 1, "depformer_num_layers": 1}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("kyutai_tts"), **SMALL)


def words(release: Path, out: Path) -> list[str]:
    return ["kyutai-tts", "--model", str(release), "--out", str(out)]


def write_wav(path: Path, seconds: float = 1.5, rate: int = 24_000, channels: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.zeros(int(seconds * rate) * channels, "<i2").tobytes())


def test_checkpoint_keeps_release_parameters_and_voices(copied: Path, tmp_path: Path) -> None:
    write_wav(copied / "voices" / "Alba.wav")
    assert main(words(copied, tmp_path / "out")) == 0
    config = config_at(tmp_path / "out")
    assert (config["sliding_window"], config["layer_types"]) == (40, ["sliding_attention"])
    known = TtsVocabulary.from_record(config[VOCABULARY])
    assert (known.num_text_ids, known.num_codebooks, known.codebook_size, known.delay_rows) == (96, 8, 64, 5)
    assert known.delays == (0, *[2] * 7)
    assert family_at(tmp_path / "out").voices == ("alba",)
    assert (tmp_path / "out" / "voices" / "alba.wav").exists()


def test_wish_token_embedding_equals_pad_embedding(release: Path, tmp_path: Path) -> None:
    assert main(words(release, tmp_path / "out")) == 0
    tensors = load_file(next((tmp_path / "out").glob("*.safetensors")))
    known = TtsVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY])
    for name in ("model.embed_tokens.weight", "depth.embed"):
        assert torch.equal(tensors[name][known.wish_id], tensors[name][3])
    assert not tensors["model.embed_tokens.weight"][known.nothing].any()


def test_text_head_of_few_ids_and_low_rank_tables_are_converted(tmp_path: Path) -> None:
    """Other ids have zeros in the head, and are never sampled; tables of low rank are multiplied out."""
    release = write_release(tmp_path / "release", base=REDUCED, **SMALL)
    assert main(words(release, tmp_path / "out")) == 0
    published = load_file(release / CONFIG["moshi_name"])
    tensors = load_file(next((tmp_path / "out").glob("*.safetensors")))
    known = TtsVocabulary.from_record(config_at(tmp_path / "out")[VOCABULARY])
    assert torch.equal(tensors["depth.first_head"][:5], published["text_linear.weight"])
    assert not tensors["depth.first_head"][5:].any()
    assert len(tensors["depth.first_head"]) == known.text_end
    script = family_at(tmp_path / "out").drawing
    assert isinstance(script, WordScript)
    assert script.num_sampled == 5
    names = ["depformer_text_emb", *(f"depformer_emb.{k}" for k in range(7))]
    tables = [published[f"{name}.weight"] @ published[f"{name}.low_rank.weight"].T for name in names]
    expected = torch.cat([tables[0][:96], tables[0][3:4], *(table[:64] for table in tables[1:])])
    torch.testing.assert_close(tensors["depth.embed"], expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "moshi"}, "config.json: model_type: expected 'tts', got 'moshi'"),
        ({"dep_q": 9}, "config.json: dep_q: expected at most 8, as n_q, got 9"),
        ({"n_q": 9}, "config.json: delays: expected 0, then 9 delays from 0 to 64"),
        ({"dep_q": 1}, "after the first 1 (dep_q) only delays that these have, got [0, 0, 2"),
        ({"norm": "layer_norm"}, "config.json: norm: expected 'rms_norm_f32', got 'layer_norm'"),
        ({"kv_repeat": 2}, "config.json: kv_repeat: expected 1, got 2"),
        ({"quantize": True}, "config.json: quantize: expected False, got True"),
        ({"lora_name": "lora.safetensors"}, "config.json: lora_name: expected no value, got 'lora.safetensors'"),
        ({"depformer_pos_emb": "sin"}, "config.json: depformer_pos_emb: expected 'none', got 'sin'"),
        ({"cross_attention": True}, "config.json: cross_attention: expected False, got True"),
        ({"demux_second_stream": 1.5}, "config.json: demux_second_stream: expected True or False, got 1.5"),
        ({"conditioners": {"cfg": {"type": "lut"}}}, "expected none, or cfg, control, speaker_wavs, got {'cfg': "),
        ({"fuser": {"sum": ["cfg"], "cross": []}}, "config.json: fuser: expected {}"),
        ({"depformer_low_rank_embeddings": 8}, "tensors do not match: missing: depformer_emb.0.low_rank.weight"),
        ({"depformer_low_rank_embeddings": -8}, "depformer_low_rank_embeddings: expected an integer in [1, 1048575]"),
        ({"text_card_out": 5}, "wrong shape: text_linear.weight [96, 64] instead of [5, 64]"),
        ({"text_card_out": 3}, "config.json: text_card_out: expected an integer in [4, 96], got 3"),
        ({"text_card_out": "5"}, "config.json: text_card_out: expected an integer in [1, 1048575], got '5'"),
        ({"delays": [0] * 8}, "config.json: delays: expected 0, then 8 delays from 0 to 64, the first of them 0"),
        ({"delays": [1, 0, *[2] * 7]}, "config.json: delays: expected 0, then 8 delays from 0 to 64"),
        ({"tts_config": {"audio_delay": -1}}, "tts_config.audio_delay: expected seconds in [0, 5.12], got -1"),
        ({"tts_config": {"audio_delay": "1"}}, "tts_config.audio_delay: expected seconds in [0, 5.12], got '1'"),
        (
            {"tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2}},
            "tts_config.second_stream_ahead: expected 0 without demux_second_stream, got 2",
        ),
        ({"tts_config": {"audio_delay": 1, "multistream": True}}, "tts_config.multistream: expected False, got True"),
        ({"text_card": 95}, "expected a tokenizer of 95 tokens, got 96"),
        ({"card": 63}, "tensors do not match: wrong shape: "),
        ({"tokenizer_name": "../tokenizer.model"}, "expected a file name without a folder, got '../tokenizer.model'"),
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
    ["depformer_in.3.weight", "linears.7.weight", "depformer_emb.6.weight", "text_linear.weight", "emb.7.weight"],
)
def test_missing_or_unknown_tensor_is_reported(copied: Path, tmp_path: Path, name: str, refuses: Refuses) -> None:
    check_tensor_errors(words(copied, tmp_path / "out"), copied / CONFIG["moshi_name"], name, refuses)


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
    copied: Path, tmp_path: Path, shape: dict[str, Any], message: str, refuses: Refuses
) -> None:
    write_wav(copied / "voices" / "alba.wav", **shape)
    refuses(words(copied, tmp_path / "out"), message)
    (copied / "voices" / "alba.wav").write_bytes(b"RIFF")
    refuses(words(copied, tmp_path / "out"), "alba.wav: expected a WAV file")
