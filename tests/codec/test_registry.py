from pathlib import Path

import pytest

from python_backend.codec.registry import LOADERS, load_codec, load_exported
from python_backend.errors import CheckpointError
from tests.codec.test_onnx_runtime import SPEC, save


def test_an_unknown_codec_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"unknown codec 'flac'; known: .*'dac'.*'tiny'"):
        load_codec("flac", tmp_path)
    with pytest.raises(KeyError, match="unknown codec 'flac'"):
        load_exported("flac", tmp_path)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_codec_has_a_module_of_its_name(name: str) -> None:
    module, function = LOADERS[name].split(":")
    assert function == "load"
    assert (Path(__file__).parents[2] / (module.replace(".", "/") + ".py")).is_file()


def test_another_codecs_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, SPEC)
    with pytest.raises(CheckpointError, match="holds an exported small, not dac"):
        load_exported("dac", tmp_path)
