"""A CUDA graph can contain a complete decode: it neither copies from the host nor waits for the device."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.checkpoints.random_codecs import MODELS, STATEFUL
from benchmarks.checkpoints.random_glm4_voice import write_glm4_voice
from benchmarks.codecs import codecs
from stretto.codecs.base import Codec, Window, load_codec
from tests.codecs.conftest import make_codec
from tests.codecs.far_device import DEVICE, crossings, send_away

pytestmark = pytest.mark.slow

FRAMES = 4


def made(name: str, folder: Path) -> Codec:
    if name == "tiny":
        return make_codec()
    if name == "glm4_voice":
        return load_codec(name, write_glm4_voice(folder))
    [(_, _, codec)] = codecs([name], None, is_wide=False)
    return codec


@pytest.mark.parametrize("name", ["tiny", "glm4_voice", *MODELS, *STATEFUL])
def test_window_is_decoded_without_host_transfers(name: str, tmp_path: Path) -> None:
    codec = made(name, tmp_path)
    assert isinstance(codec, nn.Module)
    send_away(codec)
    spec = codec.spec
    left, right = spec.left_frames, spec.right_frames
    frames = spec.blocks[-1] if spec.blocks else FRAMES
    codes = torch.zeros(2, spec.num_codebooks, left + frames + right, dtype=torch.int64, device=DEVICE)
    first = torch.full((2,), left, device=DEVICE)
    window = Window(codes, left, right, first, codec.initial_state(2))
    with torch.inference_mode(), crossings() as seen:
        pcm, states = codec.decode(window)
    assert seen == []
    assert (pcm.device, states.device) == (DEVICE, DEVICE)
    assert pcm.shape == (2, spec.num_samples(frames, right))
