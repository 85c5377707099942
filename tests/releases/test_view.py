"""Folders in which a converter finds the files of a release."""

from pathlib import Path

import pytest

from stretto.releases.messages import ReleaseError
from stretto.releases.store import link


def test_file_that_is_there_is_never_written_to(tmp_path: Path) -> None:
    """It may be a second name of a file in the hub's cache."""
    cached, other, target = tmp_path / "cached", tmp_path / "other", tmp_path / "view" / "name"
    cached.write_text("cached")
    other.write_text("other")
    link(cached, target)
    with pytest.raises(ReleaseError, match="expected one file of this name, got two"):
        link(other, target)
    assert cached.read_text() == "cached"
