"""Conversion of espnet/xeus to `ssl_tokenizer/`; refusals mention the mismatch, and nothing is written."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stretto.convert.command import main
from stretto.encoders.xeus import CONFIG, FOLDER, WEIGHTS, load_ssl_tokenizer
from tests import published_xeus
from tests.published_checkpoints import command, write_opuslm
from tests.small_vocabularies import SMALL_OPUSLM

pytestmark = pytest.mark.slow

NUM_CODES = SMALL_OPUSLM.ssl[1] - SMALL_OPUSLM.ssl[0]


def convert(folder: Path, xeus: Path) -> int:
    """Convert OpusLM with an audio tokenizer; return the exit status."""
    words = command("opuslm", write_opuslm(folder / "release"), folder / "out")
    return main([*words, "--ssl-tokenizer", str(xeus)])


def test_conversion_writes_the_ssl_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xeus = published_xeus.write_xeus(tmp_path / "xeus")
    assert convert(tmp_path, xeus) == 0
    said = capsys.readouterr().out
    assert load_ssl_tokenizer(tmp_path / "out", NUM_CODES) is not None
    files = sorted(path.name for path in (tmp_path / "out" / FOLDER).iterdir())
    assert files == [CONFIG, WEIGHTS]
    assert all(f"  {FOLDER}/{name}  " in said for name in files), "their sums are printed"
    assert "not needed: util_modules.mask.mask_embedding" in said
    assert "only as codes" not in said


def test_converter_reports_code_only_input_without_an_audio_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("opuslm", write_opuslm(tmp_path / "release"), tmp_path / "out")) == 0
    assert "the server will accept audio only as codes (--ssl-tokenizer)" in capsys.readouterr().out
    assert not (tmp_path / "out" / FOLDER).exists()


def test_old_tensor_names_and_a_directory_convert_identically(tmp_path: Path) -> None:
    tensors = published_xeus.published_tensors()
    new = published_xeus.write_xeus(tmp_path / "new", tensors)
    old = published_xeus.write_xeus(tmp_path / "old", published_xeus.old_names(tensors), name="old")
    for name, release in (("a", new), ("b", old / "model")):
        (tmp_path / name).mkdir()
        assert convert(tmp_path / name, release) == 0
    first, second = (load_file(tmp_path / name / "out" / FOLDER / WEIGHTS) for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_newer_of_two_checkpoints_is_converted(tmp_path: Path) -> None:
    published_xeus.write_xeus(tmp_path / "xeus", {"odd": torch.zeros(1)}, name="old")
    assert convert(tmp_path, published_xeus.write_xeus(tmp_path / "xeus")) == 0


def refusal(folder: Path, xeus: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the converter's error message; check that nothing was written."""
    assert convert(folder, xeus) == 1
    assert not (folder / "out").exists()
    return capsys.readouterr().err


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors["encoder.encoders.1.merge_proj.bias"]


def unknown(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.encoders.3.merge_proj.bias"] = torch.zeros(32)


def misshapen(tensors: dict[str, Tensor]) -> None:
    tensors["frontend.layers.2.conv.weight"] = torch.zeros(12, 12, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "missing: encoder.encoders.1.merge_proj.bias"),
        (unknown, "unknown: encoder.encoders.3.merge_proj.bias"),
        (misshapen, "wrong shape: frontend.layers.2.conv.weight [12, 12, 4] instead of [12, 12, 3]"),
    ],
)
def test_error_names_mismatched_tensors(
    damage: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = published_xeus.published_tensors()
    damage(tensors)
    assert message in refusal(tmp_path, published_xeus.write_xeus(tmp_path / "xeus", tensors), capsys)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("encoder_conf", "merge_conv_kernel", 30, "expected odd kernels"),
        ("encoder_conf", "attention_heads", 5, "expected a width of whole heads"),
        (
            "encoder_conf",
            "pos_enc_layer_type",
            "abs_pos",
            "pos_enc_layer_type: expected 'conv', got 'abs_pos'",
        ),
        ("frontend_conf", "shapes", [], "expected positive integers"),
        ("preencoder_conf", "output_size", 16, "preencoder_conf.output_size: expected 32, the encoder's width, got 16"),
    ],
)
def test_unsupported_xeus_config_is_refused(
    section: str, name: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy.deepcopy(published_xeus.CONFIG)
    config[section][name] = value
    assert message in refusal(tmp_path, published_xeus.write_xeus(tmp_path / "xeus", config=config), capsys)


def test_kmeans_centroids_of_wrong_shape_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xeus = published_xeus.write_xeus(tmp_path / "xeus")
    vocabulary = SMALL_OPUSLM.to_record() | {"ssl": (256, 275), "codec": 275, "text": (371, 431), "vocab_size": 431}
    words = command("opuslm", write_opuslm(tmp_path / "release", type(SMALL_OPUSLM).from_record(vocabulary)), tmp_path)
    assert main([*words[:-1], str(tmp_path / "out"), "--ssl-tokenizer", str(xeus)]) == 1
    assert "km_opus_lm.mdl: expected 19 centroids of 32, got [20, 32]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "xeus_checkpoint_new.pth", "km_opus_lm.mdl"])
def test_missing_file_error_names_the_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xeus = published_xeus.write_xeus(tmp_path / "xeus")
    (xeus / "model" / name).unlink()
    assert name in refusal(tmp_path, xeus, capsys)
