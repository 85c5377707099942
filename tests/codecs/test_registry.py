import re
from pathlib import Path

import pytest

from stretto.codecs.base import codec_marks, codec_module, codecs_in_transformers, load_codec
from stretto.codecs.onnx_runtime import load as load_exported
from stretto.entry_points import CODECS, installed
from stretto.errors import CheckpointError
from tests.codecs.silent import SILENT
from tests.codecs.test_onnx_runtime import SPEC, save

ROOT = Path(__file__).parents[2]
SUITE = re.compile(r'(?:CodecCase\(\s*name=|case = case_of\()"(\w+)"')


def test_unknown_codec_error_lists_the_known_codecs(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"unknown codec 'flac'; installed: .*dac, .*, tiny"):
        load_codec("flac", tmp_path)
    with pytest.raises(KeyError, match="unknown codec 'flac'"):
        load_exported("flac", tmp_path)


def test_error_names_invalid_codec_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brook-1.dist-info").mkdir()
    points = "[stretto.codecs]\nbrook = stretto.errors\npond = pond_that_is_not_there\n"
    (tmp_path / "brook-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"codec brook: expected a module with `load`, got stretto.errors"):
        codec_module("brook")
    with pytest.raises(CheckpointError, match="pond: cannot import pond_that_is_not_there"):
        codec_module("pond")
    assert "mimi" in codecs_in_transformers()  # the others are still found
    assert "a codec" in "".join(codec_marks().values())


def test_onnx_file_of_another_codec_is_refused(tmp_path: Path) -> None:
    save(tmp_path, SPEC)
    with pytest.raises(CheckpointError, match="expected an exported dac, got an exported small"):
        load_exported("dac", tmp_path)


def test_every_codec_has_a_suite() -> None:
    files = [*ROOT.glob("tests/codecs/**/test_*.py"), *ROOT.glob("plugins/*/tests/**/test_*.py")]
    tested = {name for file in files for name in SUITE.findall(file.read_text())}
    assert {codec.name for codec in installed(CODECS)} - SILENT <= tested
