"""Error output of the converter's command line for a release that it refuses."""

from pathlib import Path

import pytest

from stretto.convert.command import main


def refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line with which `stretto convert` refuses this command line; `out` must not exist."""
    assert main(words) == 1
    assert not out.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said
