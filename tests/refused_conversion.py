"""Error output of the converter's command line for a release that it refuses."""

from pathlib import Path

import pytest

from stretto.convert.command import main


def refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which `stretto convert` refuses, for these words; `out` is not made."""
    assert main(words) == 1
    assert not out.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said
