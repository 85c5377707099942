"""The codec of models that generate only text."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stretto.codecs.base import Window, load_codec
from stretto.errors import InvalidRequest


def test_frames_are_silence() -> None:
    codec = load_codec("soundless", Path("missing"))
    window = Window(torch.zeros(2, 1, 3, dtype=torch.int64), 0, 0, torch.zeros(2), codec.initial_state(2))
    pcm, _ = codec.decode(window)
    assert pcm.shape == (2, codec.spec.num_samples(3, 0))
    assert not pcm.any()
    with pytest.raises(InvalidRequest, match="generates only text"):
        codec.encode(np.zeros(1, np.float32))
