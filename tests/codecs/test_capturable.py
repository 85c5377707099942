"""A CUDA graph can contain a complete decode: it neither copies from the host nor waits for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.codecs import codecs
from lab.releases.every_codec import every_codec
from lab.releases.random_codecs import MODELS, STATEFUL
from lab.releases.random_glm4_voice import write_glm4_voice
from stretto.codecs.base import Codec, Window, load_codec
from stretto.entry_points import CODECS, installed
from tests.codecs.conftest import make_codec
from tests.codecs.far_device import ASKING, DEVICE, crossings, send_away
from tests.tiers import by_night

FRAMES = 4
OTHERS = ("audiovae", "fish_s2", "moss", "pocket", "qwen3_omni")  # further codecs of `every_codec`
READING = ("cosyvoice3", "s3gen", "vibevoice")  # codecs that need values on the host


def made(name: str, folder: Path) -> Codec:
    if name == "tiny":
        return make_codec()
    if name in OTHERS:
        return every_codec(name, is_narrow=True)
    if name == "glm4_voice":
        return load_codec(name, write_glm4_voice(folder))
    [(_, _, codec)] = codecs([name], None, is_wide=False)
    return codec


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "glm4_voice", *OTHERS, *MODELS, *STATEFUL])
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


class Copies(TorchDispatchMode):
    """Counter of copies from the device to the host, which yield zeros; other ways to wait for the device fail."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._overloadpacket.__name__, kwargs or {}
        is_far = bool(args) and isinstance(args[0], Tensor) and args[0].device == DEVICE
        assert not (is_far and name in ASKING), f"{name} waits for the device"
        try:
            return func(*args, **kwargs)
        except NotImplementedError:  # a copy to the host, which has no values
            assert name in ("to", "_to_copy"), name
            self.num += 1
            dtypes = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)]
            return torch.zeros(args[0].shape, dtype=next(iter(dtypes), args[0].dtype))


@pytest.mark.parametrize("name", [READING[0], *by_night(*READING[1:])])
def test_codec_that_reads_on_the_host_waits_for_the_device_once(name: str) -> None:
    """It waits for the next states of the whole batch, if these are on the host."""
    codec = every_codec(name, is_narrow=True)
    assert isinstance(codec, nn.Module)
    send_away(codec)
    spec = codec.spec
    assert spec.reads_on_host
    assert not spec.can_capture
    frames = spec.blocks[0] - spec.right_frames if spec.blocks else FRAMES
    codes = torch.zeros(3, spec.num_codebooks, frames + spec.right_frames, dtype=torch.int64)
    window = Window(codes, 0, spec.right_frames, torch.zeros(3, dtype=torch.int64), codec.initial_state(3))
    with torch.inference_mode(), Copies() as copies:
        pcm, states = codec.decode(window)
    assert pcm.shape == (3, spec.num_samples(frames, spec.right_frames))
    assert states.device == window.state.device
    assert copies.num <= 1


def test_every_codec_is_tested_here() -> None:
    tested = {"tiny", "glm4_voice", *OTHERS, *READING, *(name.split("_")[0] for name in MODELS), *STATEFUL}
    assert {each.name for each in installed(CODECS)} <= tested | {name.removesuffix("_24khz") for name in STATEFUL}
