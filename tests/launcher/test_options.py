"""Options of the launcher in a model repository, and the model that a launcher reports."""

from pathlib import Path

import pytest

from stretto.launcher.config import launch_config, parser
from stretto.launcher.installation import LaunchError
from stretto.launcher.options import OPTIONS_FILE, RepositoryOptions, ServedModel, read_options, served_model

MODEL = ServedModel("voice", "0123456789abcdef")


@pytest.mark.parametrize(
    "options", [RepositoryOptions(), RepositoryOptions(shares_by_mps=True), RepositoryOptions(True, MODEL)]
)
def test_written_options_are_read_back(tmp_path: Path, options: RepositoryOptions) -> None:
    assert read_options(tmp_path) == RepositoryOptions()
    options.write(tmp_path)
    assert read_options(tmp_path) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "voice"}', "model: expected an object with name and key, got 'voice'"),
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


def test_launcher_reports_the_installed_model_or_the_path_of_its_repository(tmp_path: Path) -> None:
    flags = parser().parse_args(["--model-repository", str(tmp_path), "--pid-file", str(tmp_path / "pid")])
    assert launch_config(flags, []).model == ServedModel(str(tmp_path.resolve()))
    RepositoryOptions(model=MODEL).write(tmp_path)
    assert launch_config(flags, []).model == served_model(tmp_path) == MODEL
