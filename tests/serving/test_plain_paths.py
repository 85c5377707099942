"""Triton starts its stubs by a line of bash: what that cannot say goes by another name."""

from pathlib import Path

import pytest
from stretto.serving.plain_paths import plain_path


@pytest.mark.parametrize("name", ["a b", "ü", "it's", "$HOME", "a;b", "a\nb"])
def test_what_bash_would_not_read_as_one_word_goes_by_a_link(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "inside").touch()
    plain = plain_path(folder, tmp_path, "models")
    assert plain == tmp_path / "models"
    assert (plain / "inside").exists()


def test_a_plain_path_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model_repository-2.51+cpu"
    assert plain_path(path, tmp_path, "models") == path
    assert not (tmp_path / "models").exists()
