"""`xcodec`: X-codec (Ye et al., 2024), a DAC whose codes also represent HuBERT features; used by Bagpiper."""

from pathlib import Path

from torch import Tensor
from transformers import XcodecConfig, XcodecModel

from stretto.codecs.base import CodecSpec, Windowed
from stretto.codecs.dac import decoder_layers, share_layers
from stretto.codecs.streaming import WindowedCodec, context, join_constants, samples_per_frame
from stretto.errors import CheckpointError
from stretto.weights.loading import codec_directory
from stretto.weights.pretrained import load_config, load_model

ENCODING = ("acoustic_encoder", "encoder_semantic", "semantic_model", "fc")
TRAINING = ("decoder_semantic", "fc1")
MARKS = {"acoustic_decoder.conv1.weight": "a codec of X-codec's kind"}
TRANSFORMERS = XcodecConfig, XcodecModel


class SemanticCodec(WindowedCodec):
    """X-codec. Decoding needs only the quantiser, `fc2` and the acoustic decoder; encoding needs all modules."""

    def __init__(self, name: str, model: XcodecModel, can_encode: bool) -> None:
        config = model.config
        layers = decoder_layers(model.config.acoustic_model_config, output_padding=True)
        super().__init__(
            CodecSpec(
                name=name,
                sample_rate=config.sample_rate,
                samples_per_frame=samples_per_frame(layers),
                num_codebooks=config.num_quantizers,
                codebook_size=config.codebook_size,
                streaming=Windowed(*context(layers)),
            ),
            can_encode,
        )
        self.model = model
        share_layers(model.acoustic_decoder)
        for network in TRAINING if can_encode else TRAINING + ENCODING:
            delattr(model, network)

    def forward(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to a waveform [B, n]."""
        return self.model.decode(codes, return_dict=False)[:, 0]

    def codes_of(self, pcm: Tensor) -> Tensor:
        """Encode pcm [B, n], padded by `fit`, to codes [B, K, T]."""
        return self.model.encode(pcm[:, None], return_dict=False)


def load_semantic(
    name: str, model_class: type[XcodecModel], directory: Path, codec_class: type[SemanticCodec] = SemanticCodec
) -> SemanticCodec:
    """Load an X-codec or a codec derived from it.

    The checkpoint may lack tensors that are used only for encoding and training; the codec then cannot encode. Any
    other missing or invalid tensor raises CheckpointError.
    """
    directory = codec_directory(directory)
    model, is_complete = load_model(model_class, directory, ENCODING + TRAINING)
    try:
        return join_constants(codec_class(name, model, can_encode=is_complete))
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def load(directory: Path, device: str = "cpu") -> SemanticCodec:
    """Load the codec of a published checkpoint."""
    return load_semantic("xcodec", XcodecModel, directory).to(device)


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    config = load_config(XcodecConfig, directory)
    return config.num_quantizers, config.codebook_size
