"""Checks that the converter refuses edited releases (`stretto.testing.releases.edited`).

plugins/conftest.py has these fixtures, and every run imports it, so torch and the converter are imported in functions.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Refuses = Callable[..., None]


def refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error line of `stretto convert` for this command line; `out` must not exist afterwards."""
    from stretto.convert.command import main

    assert main(words) == 1
    assert not out.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture
def copied(release: Path, tmp_path: Path) -> Path:
    """Return a copy of the release of the test module, for edits."""
    return Path(shutil.copytree(release, tmp_path / "release"))


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Refuses:
    """Check that the converter refuses a command line with one line that contains all messages, and writes nothing."""

    def check(words: list[str], *messages: str) -> None:
        capsys.readouterr()
        said = refused(words, Path(words[words.index("--out") + 1]), capsys)
        for message in messages:
            assert message in said

    return check


def check_tensor_errors(words: list[str], weights: Path, name: str, refuses: Refuses) -> None:
    """Assert that a missing or unknown tensor, and one of another shape, are named.

    Args:
        words: Command line of the converter.
        weights: File of the release's tensors, overwritten.
        name: Name of a tensor in this file.
        refuses: The fixture.
    """
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    for changed, expected in (
        ({key: value for key, value in tensors.items() if key != name}, f"missing: {name}"),
        (tensors | {"extra": torch.zeros(1)}, "unknown: extra"),
        (tensors | {name: torch.zeros(3, 3)}, f"wrong shape: {name} [3, 3]"),
    ):
        save_file(changed, weights)
        refuses(words, expected)
