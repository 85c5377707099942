from pathlib import Path

import numpy as np
import pytest

from python_backend.codec.registry import LOADERS, load_codec
from python_backend.decoder.streaming import Windower
from scripts.codecs.random_weights import write_checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("dac_16khz", tmp_path_factory.mktemp("dac"))


def test_an_unknown_codec_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"unknown codec 'flac'; known: .*'dac'.*'tiny'"):
        load_codec("flac", tmp_path)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_codec_has_a_module_of_its_name(name: str) -> None:
    module, function = LOADERS[name].split(":")
    assert function == "load"
    assert (Path(__file__).parents[2] / (module.replace(".", "/") + ".py")).is_file()


def test_the_latency_dial_lets_a_window_go_earlier(directory: Path) -> None:
    codes = np.zeros((12, 8), dtype=np.int32)
    assert Windower(load_codec("dac", directory).spec).push(codes, False) is None
    window = Windower(load_codec("dac", directory, right_frames=3).spec).push(codes, False)
    assert window is not None
    assert window.shape == (0, 5, 3)


def test_a_dial_beyond_the_codecs_range_is_named(directory: Path) -> None:
    with pytest.raises(ValueError, match=r"right_frames must be in \[1, 10\] for dac, got 0"):
        load_codec("dac", directory, right_frames=0)
