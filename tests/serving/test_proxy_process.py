"""What the launcher tells the proxy."""

from pathlib import Path

from stretto.serving.folders import bundled_repository
from stretto.serving.proxy_process import others_models


def test_the_models_of_a_repository_that_are_not_ours(tmp_path: Path) -> None:
    for name in ("speech", "language_model", "ocr", "cats"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    assert others_models(tmp_path) == ("cats", "ocr")


def test_of_the_bundled_repository_all_are_ours() -> None:
    assert others_models(bundled_repository()) == ()
