"""Decoders of transformers on a GPU, in Triton's interpreter: DAC's, which X-codec and others have, too."""

import pytest
import torch
from torch import Tensor, nn
from transformers import DacConfig
from transformers.models.dac.modeling_dac import DacDecoder

from stretto.codecs.dac import share_layers
from stretto.codecs.streaming import context, dac_layers, join_constants, samples_per_frame
from stretto.testing.codec_streams import largest
from stretto.testing.fake_gpu import Launches, kernels_on_host
from stretto.testing.rounding import is_same
from tests.tiers import by_night

RATIOS = (3,)


def small_decoder(output_padding: bool) -> DacDecoder:
    """Return a decoder with random weights; one with `output_padding` is X-codec's."""
    torch.manual_seed(0)
    config = DacConfig(hidden_size=8, decoder_hidden_size=16, upsampling_ratios=list(RATIOS))
    decoder = DacDecoder(config).eval().requires_grad_(False)
    for name, layer in decoder.named_modules():
        if isinstance(layer, nn.ConvTranspose1d) and output_padding:
            layer.output_padding = (layer.stride[0] % 2,)
        if "snake" in name:
            nn.init.uniform_(layer.alpha, 0.5, 2.0)
    return decoder


@pytest.mark.parametrize("output_padding", [True, *by_night(False)])
def test_decoder_gives_the_same_in_any_window_and_batch(output_padding: bool) -> None:
    decoder = small_decoder(output_padding)
    layers = dac_layers(RATIOS, output_padding)
    left, right = context(layers)
    hop = samples_per_frame(layers)
    latents = torch.randn(2, 8, left + 2 + right, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = decoder(latents)
    share_layers(decoder)
    join_constants(decoder)
    with torch.inference_mode():
        of_host = decoder(latents)
    with kernels_on_host():
        whole = decoder(latents)
        window = decoder(latents[1:, :, 1:])
    assert largest(of_host - expected) <= 1e-6, "unchanged on a CPU"
    assert largest(whole - expected) <= 1e-5
    assert whole.shape == expected.shape
    begin = (left + 1) * hop
    assert is_same(window[:, :, left * hop : (left + 1) * hop], whole[1:, :, begin : begin + hop])


def test_layer_is_one_launch() -> None:
    decoder = small_decoder(output_padding=False)
    share_layers(decoder)
    join_constants(decoder)
    num_layers = sum(isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) for layer in decoder.modules())
    names = launched(decoder.to("meta"), torch.zeros(1, 8, 4, device="meta"))
    assert names.count("product") == num_layers
    assert len(names) <= num_layers + 2, "a copy to rows, and tanh"


@torch.inference_mode()
def launched(decoder: DacDecoder, latents: Tensor) -> list[str]:
    """Return the operators that compute on a device, after a first decode."""
    decoder(latents)
    with Launches() as launches:
        decoder(latents)
    return launches.names
