"""`dac`: the Descript Audio Codec as transformers publishes it (16, 24 and 44.1 kHz; Kumar et al., 2023)."""

from math import prod
from pathlib import Path

from torch import Tensor
from transformers import DacConfig, DacModel

from stretto.codec.base import CodecSpec, Windowed
from stretto.codec.published import codec_directory, load_model
from stretto.codec.receptive_field import Layer, context, dac_layers, tail_samples
from stretto.codec.windowed import WindowedCodec
from stretto.errors import CheckpointError


def decoder_layers(config: DacConfig, output_padding: bool) -> list[Layer]:
    """The layers of a DAC decoder; CheckpointError unless it makes as many samples of a frame as its encoder takes.

    The order of the strides decides how far the decoder sees: (8, 5, 4, 2) 10 frames, but (2, 4, 5, 8) 30.
    """
    ratios = config.upsampling_ratios
    if prod(ratios) != prod(config.downsampling_ratios):
        raise CheckpointError(f"upsampling_ratios {ratios} do not undo {config.downsampling_ratios}")
    return dac_layers(ratios, output_padding)


class DacCodec(WindowedCodec):
    """The codec of `base.Codec`. With odd strides the last frame of an utterance falls short of a whole one."""

    def __init__(self, model: DacModel) -> None:
        config, layers = model.config, decoder_layers(model.config, output_padding=False)
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

    def forward(self, codes: Tensor) -> Tensor:
        """Waveform [B, n] of codes [B, K, T]."""
        return self.model.decode(audio_codes=codes, return_dict=False)[0]

    def codes_of(self, pcm: Tensor) -> Tensor:
        """Return codes [B, K, T] of pcm [B, n] from `fit`."""
        return self.model.encode(pcm[:, None]).audio_codes


def load(directory: Path, device: str = "cpu") -> DacCodec:
    """The codec in a published checkpoint; CheckpointError names what is missing or does not fit."""
    model, _ = load_model(DacModel, codec_directory(directory))
    return DacCodec(model).to(device)
