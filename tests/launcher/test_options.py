"""Options of the launcher in a model repository, and the model that a launcher reports."""

import json
import os
from pathlib import Path

import pytest

from stretto.launcher.config import launch_config, parser
from stretto.launcher.installation import LaunchError
from stretto.launcher.options import (
    OPTIONS_FILE,
    RepositoryOptions,
    ServedModel,
    configuration_digest,
    read_options,
    served_model,
    weights_digest,
)
from stretto.launcher.server import identity
from stretto.machine.numerics import numeric_class

MODEL = ServedModel("voice", "0123456789abcdef", revision="c0ffee")


@pytest.mark.parametrize(
    "options", [RepositoryOptions(), RepositoryOptions(shares_by_mps=True), RepositoryOptions(True, MODEL)]
)
def test_written_options_are_read_back(tmp_path: Path, options: RepositoryOptions) -> None:
    assert read_options(tmp_path) == RepositoryOptions()
    options.write(tmp_path)
    found = read_options(tmp_path)
    assert found == options
    assert found.model is None or found.model.revision == MODEL.revision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "voice"}', "model: expected an object with name and key, got 'voice'"),
        ('{"shares_by_mps": "yes"}', "shares_by_mps: expected true or false, got 'yes'"),
        ('{"model": {"name": "voice"}}', "model: expected an object with name and key"),
        ('{"model": {"name": "voice", "key": ""}}', "model: expected an object with name and key"),
        ('{"model": {"name": "voice\\n", "key": "1"}}', "model: expected an object with name and key"),
        ('{"models": {}}', "expected an object with shares_by_mps and model"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / OPTIONS_FILE).write_text(text)
    with pytest.raises(LaunchError, match=message):
        read_options(tmp_path)
    (tmp_path / OPTIONS_FILE).unlink()
    (tmp_path / OPTIONS_FILE).symlink_to("/dev/null")
    with pytest.raises(LaunchError, match="expected a regular file, got a FIFO, socket or device"):
        read_options(tmp_path)


def test_launcher_reports_the_installed_model_or_the_path_of_its_repository(tmp_path: Path) -> None:
    flags = parser().parse_args(["--model-repository", str(tmp_path), "--pid-file", str(tmp_path / "pid")])
    assert launch_config(flags, []).model == ServedModel(str(tmp_path.resolve()))
    RepositoryOptions(model=MODEL).write(tmp_path)
    assert launch_config(flags, []).model == served_model(tmp_path) == MODEL


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("launcher.json", True),
        ("speech/config.pbtxt", True),
        ("language_model/1/engine.json", True),
        ("language_model/1/checkpoint/config.json", True),
        ("language_model/1/checkpoint/codec/config.json", True),
        ("language_model/1/checkpoint/tokenizer.model", True),
        ("language_model/1/model.py", True),
        ("language_model/1/checkpoint/model.safetensors", False),
    ],
)
def test_configuration_digest_covers_the_configs_of_the_repository(tmp_path: Path, path: str, counts: bool) -> None:
    checkpoint = tmp_path / "checkpoint"
    folder = tmp_path / "repository"
    (folder / "language_model/1").mkdir(parents=True)
    (folder / "language_model/1/checkpoint").symlink_to(checkpoint, target_is_directory=True)
    for each in (folder / "speech", checkpoint / "codec"):
        each.mkdir(parents=True)
    before = configuration_digest(folder)
    assert configuration_digest(folder, ("perth",)) != before
    (folder / path).write_text("{}")
    empty = configuration_digest(folder)
    (folder / path).write_text("{ }")
    assert (empty != before, configuration_digest(folder) != empty) == (counts, counts)


def test_unreadable_file_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "language_model/1/checkpoint/config.json"
    config.mkdir(parents=True)
    with pytest.raises(LaunchError, match=f"^cannot read {config} \\(Is a directory\\)$"):
        configuration_digest(tmp_path)


@pytest.mark.parametrize("path", ["checkpoint/model.safetensors", "checkpoint/codec/model.pt", "adapters/a/a.bin"])
def test_weights_digest_covers_the_files_of_the_checkpoint(tmp_path: Path, path: str) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "repository"
    (folder / "language_model/1/adapters/a").mkdir(parents=True)
    (folder / "language_model/1/checkpoint").symlink_to(checkpoint, target_is_directory=True)
    (checkpoint / "codec").mkdir(parents=True)
    digests = [weights_digest(folder)]
    file = folder / "language_model/1" / path
    for content, time_s in (("a", 1), ("b", 2), ("bc", 2)):
        file.write_text(content)
        os.utime(file, (time_s, time_s))
        digests.append(weights_digest(folder))
    (checkpoint / "module.pyc").write_text("")
    assert weights_digest(folder) == digests[-1]
    assert len({*digests}) == 4
    file.rename(file.with_name("other"))
    assert weights_digest(folder) not in digests


def test_server_is_named_by_its_model_revision_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech/config.pbtxt").write_text('key: "profile" value { string_value: \'{"family": "tiny"}\' }')
    flags = parser().parse_args(["--model-repository", str(tmp_path), "--pid-file", str(tmp_path / "pid")])
    record = json.loads(identity(launch_config(flags, [])))
    of_machine = {"weights": weights_digest(tmp_path), "numerics": numeric_class()}
    assert record == {"model": "tiny", "configuration": configuration_digest(tmp_path, ("",))} | of_machine
    RepositoryOptions(model=MODEL).write(tmp_path)
    record = json.loads(identity(launch_config(flags, ["--log-verbose=1"])))
    digest = configuration_digest(tmp_path, ("", "--log-verbose=1"))
    assert record == {"model": "voice", "revision": "c0ffee", "configuration": digest} | of_machine
