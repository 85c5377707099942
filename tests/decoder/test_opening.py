from pathlib import Path

import numpy as np
import pytest

from python_backend.config import DecoderConfig
from python_backend.decoder.opening import open_codec
from python_backend.decoder.streaming import Windower
from python_backend.errors import CheckpointError
from scripts.codecs.random_weights import write_checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("dac_16khz", tmp_path_factory.mktemp("dac"))


def test_the_latency_dial_lets_a_window_go_earlier(directory: Path) -> None:
    codes = np.zeros((12, 8), dtype=np.int32)
    exact = open_codec(DecoderConfig(codec="dac"), directory)
    assert Windower(exact.spec).push(codes, False) is None
    window = Windower(open_codec(DecoderConfig(codec="dac", right_frames=3), directory).spec).push(codes, False)
    assert window is not None
    assert window.shape == (0, 5, 3)


def test_a_dial_beyond_the_codecs_range_is_named(directory: Path) -> None:
    with pytest.raises(ValueError, match=r"right_frames must be in \[1, 10\] for dac, got 0"):
        open_codec(DecoderConfig(codec="dac", right_frames=0), directory)


def test_the_onnx_runtime_asks_for_its_file(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"codec\.onnx is missing: scripts/export_onnx\.py writes it"):
        open_codec(DecoderConfig(codec="dac", runtime="onnx"), directory)
