"""Parameters of a model config as Triton passes them."""

import json
from pathlib import Path

import pytest

from stretto.errors import CheckpointError
from stretto.triton_io.tensors import ModelParameters


def parameters(folder: Path, kind: str = "CPU", device_id: str = "0", **values: str) -> ModelParameters:
    config = {"parameters": {name: {"string_value": value} for name, value in values.items()}}
    instance = {"model_instance_kind": kind, "model_instance_device_id": device_id}
    return ModelParameters(instance | {"model_repository": str(folder), "model_config": json.dumps(config)})


def test_paths_are_relative_to_the_model_folder(tmp_path: Path) -> None:
    own = tmp_path / "repository" / "acoustic_decoder"
    read = parameters(own, checkpoint="../language_model/1/checkpoint", elsewhere="/models/x", limit="16")
    assert read.path("checkpoint") == tmp_path / "repository" / "language_model" / "1" / "checkpoint"
    assert read.path("elsewhere") == Path("/models/x")
    assert read.number("limit") == 16


def test_invalid_limits_are_refused_by_name(tmp_path: Path) -> None:
    read = parameters(tmp_path, chunks="0", frames="many", ahead="nan", before="-1", any="0")
    assert read.seconds("any") == 0
    for ask, name, message in (
        (read.number, "chunks", "chunks must be >= 1, got 0"),
        (read.number, "frames", "frames must be int, got 'many'"),
        (read.seconds, "frames", "frames must be float, got 'many'"),
        (read.seconds, "ahead", "ahead must be >= 0, got nan"),
        (read.seconds, "before", "before must be >= 0, got -1.0"),
        (read.path, "checkpoint", r"checkpoint is missing from the parameters in config\.pbtxt"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            ask(name)


@pytest.mark.parametrize(
    ("kind", "device_id", "device"),
    [("CPU", "0", "cpu"), ("MODEL", "0", "cpu"), ("GPU", "0", "cuda:0"), ("GPU", "3", "cuda:3")],
)
def test_instance_group_selects_the_device(tmp_path: Path, kind: str, device_id: str, device: str) -> None:
    assert parameters(tmp_path, kind, device_id).device == device


def test_model_that_generates_frames_is_the_checkpoint_or_its_speaker(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    assert parameters(tmp_path, checkpoint=".").speaking_checkpoint() == tmp_path
    (tmp_path / "config.json").write_text('{"speech_family": "spoken"}')
    assert parameters(tmp_path, checkpoint=".").speaking_checkpoint() == tmp_path / "talker"


def test_model_parameters_refuse_a_checkpoint_of_unknown_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "nobody"}')
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        parameters(tmp_path, checkpoint=".").speaking_checkpoint()
