"""From what an operator has set to the codec that the decoder runs."""

from pathlib import Path

from stretto.codec.base import Codec
from stretto.codec.registry import load_codec, load_exported
from stretto.config import DecoderConfig
from stretto.errors import CheckpointError


def open_codec(config: DecoderConfig, checkpoint: Path) -> Codec:
    """The codec with the weights in `checkpoint`, or its exported file there, and as much right context as is set.

    Raises CheckpointError for files that do not fit, and ValueError for a device or a right context that cannot be.
    """
    if config.runtime == "onnx":
        codec = load_exported(config.codec, checkpoint, config.device, config.threads)
        there, wanted = codec.spec.num_codebooks, config.num_codebooks or codec.spec.num_codebooks
        if there != wanted:
            raise CheckpointError(f"{checkpoint}: {config.codec} was exported for {there} codebooks, not for {wanted}")
    else:
        codec = load_codec(config.codec, checkpoint, config.device, config.num_codebooks)
    if config.right_frames is not None:
        codec.spec = codec.spec.with_right_frames(config.right_frames)
    return codec
