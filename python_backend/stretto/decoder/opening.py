"""Construction of the codec that the decoder runs, from the operator's configuration."""

from pathlib import Path

from stretto.codec.base import Codec
from stretto.codec.refinement import valle
from stretto.codec.refinement.base import FOLDER, RefinedCodec
from stretto.codec.registry import load_codec, load_exported
from stretto.config import DecoderConfig
from stretto.errors import CheckpointError


def open_codec(config: DecoderConfig, checkpoint: Path) -> Codec:
    """Return the codec for `config` with the weights (or the exported file) in `checkpoint`.

    If the checkpoint has a model that fills in codebooks, the codec is combined with it.

    Raises:
        CheckpointError: If files do not match the configuration.
        ValueError: If the device or the right context is impossible.
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
    if (checkpoint / FOLDER).is_dir():
        return RefinedCodec(codec, valle.load(checkpoint / FOLDER, config.device))
    return codec
