"""Fixtures for a tiny codec with random weights, which needs no checkpoint."""

from collections.abc import Iterator

import pytest
import torch

from stretto.codecs.tiny.codec import TinyCodec, TinyConfig

SMALL = TinyConfig(
    num_codebooks=3, codebook_size=16, latent=8, encoder_channels=8, encoder_blocks=1, channels=16, blocks=2,
    pitch_channels=8, pitch_blocks=2,
)  # fmt: skip


def make_codec(config: TinyConfig = SMALL, seed: int = 0) -> TinyCodec:
    """Return a codec with moving pitch and intermittent voicing."""
    torch.manual_seed(seed)
    codec = TinyCodec(config)
    codec.quantiser.codebooks.normal_(0, 1)
    codec.eval().requires_grad_(False)
    codec.decoder.pitch_trunk.double()
    codec.decoder.pitch_trunk.leave.weight *= 4
    return codec


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because threads that wait for each other are slower for many small layers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
