"""A CUDA graph can contain a complete decode: it neither copies from the host nor waits for the device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lab.releases.every_codec import codec_cases, every_codec
from lab.releases.every_codec import make_codec as random_codec
from lab.releases.random_codecs import STATEFUL, models
from stretto.codecs.base import Codec, Window
from stretto.entry_points import CODECS, installed
from tests.codecs.conftest import make_codec
from tests.codecs.far_device import ASKING, DEVICE, crossings, send_away
from tests.tiers import by_night

FRAMES = 4
# variants of codecs with other layers, in addition to those of the cases
VARIANTS = [name for name in (*models(), *STATEFUL) if name not in codec_cases()]
BY_NIGHT = ("s3gen", "vibevoice")


def made(name: str) -> Codec:
    """Return a narrow codec or variant; the bundled codec is replaced by a narrower one."""
    if name == "tiny":
        return make_codec()
    if name in VARIANTS:
        return random_codec(name, "cpu", is_narrow=True)
    return every_codec(name, is_narrow=True)


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


def check_no_transfers(codec: Codec) -> None:
    """Check that a CUDA graph can contain a decode."""
    spec = codec.spec
    left = spec.left_frames
    right = spec.right_frames
    frames = spec.blocks[-1] if spec.blocks else FRAMES
    codes = torch.zeros(2, spec.num_codebooks, left + frames + right, dtype=torch.int64, device=DEVICE)
    first = torch.full((2,), left, device=DEVICE)
    window = Window(codes, left, right, first, codec.initial_state(2))
    with torch.inference_mode(), crossings() as seen:
        pcm, states = codec.decode(window)
    assert seen == []
    assert (pcm.device, states.device) == (DEVICE, DEVICE)
    assert pcm.shape == (2, spec.num_samples(frames, right))


def check_one_wait(codec: Codec) -> None:
    """Check that a codec that reads on the host waits for the next states of the whole batch, if these are there."""
    spec = codec.spec
    assert not spec.can_capture
    frames = spec.blocks[0] - spec.right_frames if spec.blocks else FRAMES
    codes = torch.zeros(3, spec.num_codebooks, frames + spec.right_frames, dtype=torch.int64)
    window = Window(codes, 0, spec.right_frames, torch.zeros(3, dtype=torch.int64), codec.initial_state(3))
    with torch.inference_mode(), Copies() as copies:
        pcm, states = codec.decode(window)
    assert pcm.shape == (3, spec.num_samples(frames, spec.right_frames))
    assert states.device == window.state.device
    assert copies.num <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(codec_cases().keys() - {*BY_NIGHT}), *VARIANTS, *by_night(*BY_NIGHT)])
def test_decode_does_not_wait_for_the_device(name: str) -> None:
    codec = made(name)
    assert isinstance(codec, nn.Module)
    send_away(codec)
    if codec.spec.reads_on_host:
        check_one_wait(codec)
    else:
        check_no_transfers(codec)


def test_every_codec_is_tested_here() -> None:
    assert {each.name for each in installed(CODECS)} == codec_cases().keys()
