"""`dac`: the Descript Audio Codec in transformers format (16, 24 and 44.1 kHz; Kumar et al., 2023)."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

from torch import Tensor
from transformers import DacConfig, DacModel
from transformers.models.dac.modeling_dac import DacDecoder

from stretto.codecs.base import CodecSpec, Windowed
from stretto.codecs.causal import Link, Padded, run_links
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.streaming import (
    Layer,
    WindowedCodec,
    context,
    dac_layers,
    join_constants,
    share_snake,
    tail_samples,
)
from stretto.errors import CheckpointError
from stretto.weights.loading import codec_directory
from stretto.weights.pretrained import load_model


def decoder_layers(config: DacConfig, output_padding: bool) -> list[Layer]:
    """Return the layers of a DAC decoder, or raise CheckpointError if encoder and decoder have different frame rates.

    The order of the strides determines the receptive field: 10 frames for (8, 5, 4, 2), but 30 for (2, 4, 5, 8).

    Args:
        output_padding: True if layers with an odd stride use output padding, which completes the last frame.
    """
    ratios = config.upsampling_ratios
    if prod(ratios) != prod(config.downsampling_ratios):
        raise CheckpointError(
            f"upsampling_ratios: expected ratios with the product of {config.downsampling_ratios}, got {ratios}"
        )
    return dac_layers(ratios, output_padding)


def dac_links(decoder: DacDecoder) -> Iterator[Link]:
    """Yield the layers of a decoder as links, with one kernel launch each."""
    yield Link(Padded(decoder.conv1))
    for block in decoder.block:
        yield Link(Padded(block.conv_t1), block.snake1)
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            yield Link(Padded(unit.conv1), unit.snake1, begins_residual=True)
            yield Link(Padded(unit.conv2), unit.snake2, ends_residual=True)
    yield Link(Padded(decoder.conv2), decoder.snake1)


class LaunchedDecoder(DacDecoder):
    """Decoder that runs each layer, and the operations before and after it, as one kernel launch on a GPU."""

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Return the waveform [B, 1, n] of latents [B, C, T]."""
        if runs_kernels(hidden_state):
            return self.tanh(run_links(list(dac_links(self)), hidden_state, None))
        return super().forward(hidden_state)


def share_layers(decoder: DacDecoder) -> None:
    """Replace the Snake activations, which allocate a tensor per operation; on a GPU, make each layer one launch."""
    share_snake(decoder)
    if type(decoder) is DacDecoder:
        decoder.__class__ = LaunchedDecoder


class DacCodec(WindowedCodec):
    """Descript Audio Codec. With odd strides, the last frame of an utterance has fewer samples than the others."""

    def __init__(self, model: DacModel) -> None:
        config = model.config
        layers = decoder_layers(model.config, output_padding=False)
        super().__init__(
            CodecSpec(
                name="dac",
                sample_rate=config.sampling_rate,
                samples_per_frame=prod(config.upsampling_ratios),
                num_codebooks=config.n_codebooks,
                codebook_size=config.codebook_size,
                streaming=Windowed(*context(layers)),
                tail_samples=tail_samples(layers),
            )
        )
        self.model = model
        share_layers(model.decoder)

    def forward(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to a waveform [B, n]."""
        return self.model.decode(audio_codes=codes, return_dict=False)[0]

    def codes_of(self, pcm: Tensor) -> Tensor:
        """Encode pcm [B, n], padded by `fit`, to codes [B, K, T]."""
        return self.model.encode(pcm[:, None]).audio_codes


def load(directory: Path, device: str = "cpu") -> DacCodec:
    """Load the codec of a published checkpoint."""
    model, _ = load_model(DacModel, codec_directory(directory))
    return join_constants(DacCodec(model).to(device))
