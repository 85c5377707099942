"""Fixtures for launchers with a scripted server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.launched import Launch, Launched
from tests.patience import PATIENCE_S


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Return a function that starts a launcher with a scripted server: launch(number of aborted starts, *flags)."""
    made: list[Launched] = []

    def start(aborts: int = 0, *flags: str) -> Launched:
        made.append(Launched(tmp_path, aborts, *flags))
        return made[-1]

    yield start
    for each in made:
        each.process.terminate()
        each.process.wait(PATIENCE_S)
