"""The tokenizer of audio that a server may lack."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from python_backend.errors import CheckpointError
from python_backend.preprocessing import ssl_tokenizer
from python_backend.preprocessing.ssl_tokenizer import FOLDER, GROUP, NAME, load_ssl_tokenizer


def test_a_checkpoint_that_brings_none_has_none(tmp_path: Path) -> None:
    assert load_ssl_tokenizer(tmp_path) is None


def test_one_that_nothing_installed_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(CheckpointError, match=r"entry point 'xeus' in stretto\.ssl_tokenizers, got none"):
        load_ssl_tokenizer(tmp_path)


def test_what_is_installed_opens_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FOLDER).mkdir()
    installed = EntryPoints([EntryPoint(NAME, "builtins:str", GROUP)])
    monkeypatch.setattr(ssl_tokenizer, "entry_points", lambda **wanted: installed.select(**wanted))
    assert load_ssl_tokenizer(tmp_path) == str(tmp_path / FOLDER)
