from itertools import pairwise

import pytest
import torch

from stretto.codecs.base import Stateful
from stretto.codecs.seanet import SeanetShape, SeanetStream, SeanetWidths, make_decoder

SHAPE = SeanetShape(ratios=(4, 3), kernel=5, residual_kernel=7, num_residual_layers=3)
FRAMES = 40


@pytest.fixture(scope="module")
def decoder() -> torch.nn.Sequential:
    torch.manual_seed(0)
    decoder = make_decoder(SHAPE, SeanetWidths(base=4, latent=6, lstm_layers=3)).double()
    return decoder.requires_grad_(False)


def test_windows_cut_anywhere_join_to_the_whole(decoder: torch.nn.Sequential) -> None:
    stream = SeanetStream(SHAPE, decoder[0], decoder[1].lstm, decoder[2:])
    context = stream.streaming
    assert context == Stateful(left=2 + SHAPE.tail.left, right=2 + SHAPE.tail.right, start=3)
    latents = torch.randn(2, 6, FRAMES, dtype=torch.float64)
    whole = decoder(latents)[:, 0]
    for seed in range(5):
        cuts = [
            0,
            *torch.randperm(FRAMES - 1, generator=torch.Generator().manual_seed(seed))[:6].add(1).sort()[0],
            FRAMES,
        ]
        state, parts = stream.initial_state(2), []
        for first, last in pairwise(cuts):
            left, right = min(context.left, int(first)), min(context.right, FRAMES - int(last))
            pcm, state = stream(latents[:, :, first - left : last + right], left, right, state)
            assert pcm.shape == (2, (last - first) * SHAPE.hop)
            parts.append(pcm)
        assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12


def test_state_is_the_hidden_and_cell_state_of_each_lstm_layer(decoder: torch.nn.Sequential) -> None:
    stream = SeanetStream(SHAPE, decoder[0], decoder[1].lstm, decoder[2:])
    assert stream.initial_state(2).shape == (2, 2 * 3 * 16)
    latents = torch.randn(1, 6, 12, dtype=torch.float64)
    _, state = stream(latents, 0, 0, stream.initial_state(1))
    steps = decoder[0](latents).permute(2, 0, 1)[: 12 - SHAPE.tail.left]
    hidden, cell = decoder[1].lstm(steps)[1]
    assert torch.allclose(state.reshape(2, 3, 16), torch.stack([hidden[:, 0], cell[:, 0]]))
