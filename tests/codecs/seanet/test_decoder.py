import pytest
import torch

from stretto.codecs.seanet import (
    Convolution,
    SeanetShape,
    SeanetWidths,
    Snake,
    Upsampling,
    make_decoder,
    make_encoder,
    reflect,
)


def test_snake_is_x_plus_sine_squared() -> None:
    x = torch.tensor([-2.0, 0.0, 0.5])
    assert torch.allclose(Snake()(x), torch.tensor([-2 + 0.826822, 0.0, 0.5 + 0.229849]))


@pytest.mark.parametrize(
    ("signal", "left", "right", "expected"),
    [
        ([1, 2, 3, 4], 2, 1, [3, 2, 1, 2, 3, 4, 3]),
        ([1, 2], 3, 3, [0, 0, 2, 1, 2, 0, 0, 0]),  # 1 2 0 0 is mirrored to 0 0 2 1 2 0 0 0 2 1, and as many are dropped
        ([5], 1, 0, [0, 5]),
    ],
)
def test_reflect_pads_short_signals_with_zeros(signal: list[int], left: int, right: int, expected: list[int]) -> None:
    assert reflect(torch.tensor(signal)[None, None].float(), left, right)[0, 0].tolist() == expected


@pytest.mark.parametrize("samples", [1, 4, 9, 10])
def test_convolution_output_lengths_are_exact(samples: int) -> None:
    x = torch.randn(1, 2, samples)
    assert Convolution(2, 3, 10, 5)(x).shape == (1, 3, -(-samples // 5))
    assert Convolution(2, 3, 7, dilation=4)(x).shape == (1, 3, samples)
    assert Upsampling(2, 3, 5)(x).shape == (1, 3, samples * 5)


def test_seanet_encoder_and_decoder_shapes_match() -> None:
    shape, widths = SeanetShape(ratios=(4, 3), num_residual_layers=2), SeanetWidths(base=2, latent=6)
    with torch.inference_mode():
        latents = make_encoder(shape, widths)(torch.randn(2, 1, 100))
        assert latents.shape == (2, 6, 9)
        assert make_decoder(shape, widths)(latents).shape == (2, 1, 108)
