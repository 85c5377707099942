"""Fixtures for a tiny codec with random weights, which needs no checkpoint."""

from collections.abc import Iterator

import pytest
import torch

from stretto.codecs.tiny.codec import TinyCodec, TinyConfig, VocoderConfig
from tests.tiers import by_night

SMALL = VocoderConfig(channels=16, blocks=3, pitch_channels=8, pitch_blocks=3, lookahead=3)


def make_codec(vocoder: VocoderConfig = SMALL, seed: int = 0) -> TinyCodec:
    """Return a codec with moving pitch and intermittent voicing."""
    torch.manual_seed(seed)
    codec = TinyCodec(TinyConfig(num_codebooks=3, codebook_size=16, mel_frames=4, rank=8, vocoder=vocoder))
    codec.quantiser.mean.normal_(-4, 0.5)
    codec.quantiser.basis.normal_(0, 0.3)
    codec.quantiser.codebooks.normal_(0, 1)
    codec.eval().requires_grad_(False)
    codec.vocoder.pitch_trunk.double()
    codec.vocoder.pitch_trunk.leave.weight *= 4
    return codec


@pytest.fixture(params=[*by_night(torch.float32, ids=["fp32"]), pytest.param(torch.float64, id="fp64")])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture(scope="session")
def codec() -> TinyCodec:
    return make_codec()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because threads that wait for each other are slower for many small layers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
