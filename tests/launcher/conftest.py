"""Launchers with a scripted server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.launched import Launch, Launched
from tests.patience import PATIENCE_S


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a launcher with a scripted server in `tmp_path`: launch(number of aborted starts, *flags)."""
    made: list[Launched] = []

    def start(aborts: int = 0, *flags: str) -> Launched:
        made.append(Launched(tmp_path, aborts, *flags))
        return made[-1]

    yield start
    for each in made:
        each.process.terminate()
        each.process.wait(PATIENCE_S)
