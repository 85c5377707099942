"""Conversion of VibeVoice: strict, with four rows of an untied head, and the decoder for codec and model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stretto.convert.command import main as convert
from stretto.errors import CheckpointError
from stretto.families.plugin import NAME as FAMILY
from stretto.families.plugin import VOCABULARY, config_at, read_family
from stretto.families.vibevoice.family import VibeVoiceVocabulary
from tests.refused_conversion import Edit, Refuses, edited
from tests.vibevoice_release import (
    BEGIN,
    END,
    END_OF_REPLY,
    FRAME,
    NUM_IDS,
    OFFSET,
    SCALE,
    changed_config,
    write_release,
)

MODEL = "model.safetensors"
FACTOR, STEM = "model.latent_scaling_factor", "model.audio_tower.decoder.stem.conv.conv.weight"


def words(release: Path, out: Path, *more: str) -> list[str]:
    files = ("--model", str(release), "--config", str(release / "config.json"))
    return ["vibevoice", *files, "--out", str(out), *more]


def run(release: Path, out: Path) -> int:
    return convert(words(release, out))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("vibevoice") / "release")


def copy_of(release: Path, folder: Path) -> Path:
    """Return a copy whose files may be changed."""
    folder.mkdir()
    for path in release.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def written(checkpoint: Path) -> dict[str, Tensor]:
    (shard,) = checkpoint.glob("model-*.safetensors")
    return load_file(shard)


def test_tensors_are_those_of_the_release(release: Path, tmp_path: Path) -> None:
    assert run(release, tmp_path / "out") == 0
    given, found, codec = (
        load_file(release / MODEL),
        written(tmp_path / "out"),
        load_file(tmp_path / "out/codec" / MODEL),
    )
    table = found["model.embed_tokens.weight"]
    assert table[:NUM_IDS].equal(given["model.language_model.embed_tokens.weight"])
    assert len(table) == NUM_IDS + 1
    assert not table[NUM_IDS:].any()
    assert "audio_head.weight" not in found, "rows of the table are the head"
    for own, name in (
        ("acoustic_connector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("semantic_connector.act.weight", "model.semantic_connector.act.weight"),
        ("head.timestep_proj.fc1.weight", "model.diffusion_head.timestep_proj.fc1.weight"),
        (
            "feedback.decoder.conv_layers.1.conv.conv.weight",
            "model.audio_tower.decoder.conv_layers.1.convtr.convtr.weight",
        ),
        (
            "feedback.encoder.conv_layers.1.conv.conv.bias",
            "model.semantic_tokenizer_encoder.conv_layers.1.conv.conv.bias",
        ),
    ):
        assert found[own].equal(given[name]), own
    assert codec["decoder.stem.conv.conv.weight"].equal(given[STEM])
    assert found["feedback.decoder.stem.conv.conv.weight"].equal(given[STEM])
    record = json.loads((tmp_path / "out/codec/config.json").read_text())
    for numbers in (record, config_at(tmp_path / "out")["tokenizers"]):
        assert numbers["latent_scaling_factor"] == pytest.approx(SCALE)
        assert numbers["latent_bias_factor"] == pytest.approx(OFFSET)


def test_a_second_copy_of_a_tied_head_is_left_out(release: Path, tmp_path: Path) -> None:
    release = copy_of(release, tmp_path / "release")
    with edited(release / MODEL) as tensors:
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    assert run(release, tmp_path / "out") == 0
    assert not {"audio_head.weight", "lm_head.weight"} & set(written(tmp_path / "out"))


def test_of_an_untied_head_four_rows_stay(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", "untied")
    assert run(release, tmp_path / "out") == 0
    rows = load_file(release / MODEL)["lm_head.weight"][[BEGIN, END, FRAME, END_OF_REPLY]]
    assert written(tmp_path / "out")["audio_head.weight"].equal(rows)
    assert not config_at(tmp_path / "out")[VOCABULARY]["is_tied"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(STEM), f"missing: {STEM}"),
        (lambda t: t.update(more=torch.zeros(2)), "unknown: more"),
        (lambda t: t.update({STEM: torch.zeros(2, 2)}), f"wrong shape: {STEM} [2, 2] instead of [32, 8, 7]"),
        (lambda t: t.pop(FACTOR), f"{FACTOR}: expected a finite number, not 0 if it is a factor, got nothing"),
        (lambda t: t[FACTOR].fill_(float("nan")), f"{FACTOR}: expected a finite number, not 0 if it is a factor, got"),
        (lambda t: t.update({FACTOR: torch.tensor(1e300, dtype=torch.float64)}), f"{FACTOR}: expected a finite number"),
        (lambda t: t.update({FACTOR: torch.tensor(1j)}), f"{FACTOR}: expected a finite number"),
        (lambda t: t[FACTOR].fill_(0), f"{FACTOR}: expected a finite number"),
    ],
)
def test_what_does_not_fit_is_named(release: Path, tmp_path: Path, refuses: Refuses, edit: Edit, message: str) -> None:
    release = copy_of(release, tmp_path / "release")
    with edited(release / MODEL) as tensors:
        edit(tensors)
    refuses(words(release, tmp_path / "out"), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vibevoice_streaming"}, "VibeVoice Realtime 0.5B is not served: its two language models read"),
        ({"tts_backbone_num_hidden_layers": 20}, "VibeVoice Realtime 0.5B is not served"),
        ({"acoustic_tokenizer_config": {}}, "got acoustic_tokenizer_config, as in the authors' layout"),
        ({"model_type": "qwen2"}, "model_type: expected 'vibevoice', got 'qwen2'"),
        ({"audio_config": {"channels": 2}}, "audio_config.channels: expected 1, got 2"),
        ({"semantic_model_config": {"downsampling_ratios": [2, 2], "depths": [1, 1, 1]}}, "expected 3200 samples, got"),
        ({"diffusion_head_config": {"hidden_size": 64, "latent_size": 8}}, "diffusion_head_config: expected {'hidden"),
        (
            {"diffusion_head_config": {"hidden_act": "relu"}},
            "expected {'hidden_act': 'silu'}, got {'hidden_act': 'relu'}",
        ),
        ({"audio_token_id": 9999}, "begin, end, frame and end_of_reply must differ and be below 264"),
        ({"audio_token_id": "x"}, "speech_vocabulary.frame: expected a valid integer, got 'x'"),
        ({"text_config": {"num_attention_heads": 0}}, "to be a multiple of num_attention_heads, got 4096 and 0"),
        ({"audio_token_id": BEGIN}, "begin, end, frame and end_of_reply must differ"),
        ({"audio_config": [1]}, "cannot be read as a release of vibevoice"),
        ({"text_config": None}, "text_config is missing"),
        (
            {"text_config": {"num_hidden_layers": 1 << 40}},
            "num_hidden_layers: expected at most 1024 layers, got",
        ),
        ({"text_config": {"hidden_size": "wide"}}, "invalid parameters for qwen2"),
    ],
)
def test_a_config_that_does_not_fit_is_named(
    release: Path, tmp_path: Path, refuses: Refuses, change: dict[str, Any], message: str
) -> None:
    release = copy_of(release, tmp_path / "release")
    changed_config(release, **change)
    refuses(words(release, tmp_path / "out"), message)


def test_other_dtypes_are_refused(release: Path, tmp_path: Path, refuses: Refuses) -> None:
    expected = "--dtype: expected float32 (latents are fed back in float32), got bfloat16"
    refuses(words(release, tmp_path / "out", "--dtype", "bfloat16"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_text_ids": 151654}, "must differ and be below 151654"),
        ({"num_text_ids": 1 << 30}, "expected numbers of at most 1048576"),
        ({"end": 151652}, "must differ and be below 151936"),
        ({"begin": -1}, "must differ and be below 151936"),
        ({"num_numbers": 0}, r"num_numbers must be in \[1, 4096\], got 0"),
        ({"num_features": 1 << 20}, r"num_features must be in \[1, 4096\]"),
    ],
)
def test_vocabularies_are_of_the_size_of_models(change: dict[str, int], message: str) -> None:
    record = VibeVoiceVocabulary().to_record() | change
    with pytest.raises(CheckpointError, match=message):
        read_family({FAMILY: "vibevoice", VOCABULARY: record})
