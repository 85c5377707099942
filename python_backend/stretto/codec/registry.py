"""Codecs by name; a codec's library is imported on first use."""

from importlib import import_module
from pathlib import Path

from stretto.codec.base import Codec
from stretto.errors import CheckpointError

LOADERS = {
    "dac": "stretto.codec.dac:load",
    "encodec": "stretto.codec.encodec:load",
    "espnet_dac": "stretto.codec.espnet_dac:load",
    "glm4_voice": "stretto.codec.glm4_voice.codec:load",
    "higgs": "stretto.codec.higgs:load",
    "mimi": "stretto.codec.mimi:load",
    "qwen3_12hz": "stretto.codec.qwen3_12hz.codec:load",
    "qwen3_omni": "stretto.codec.qwen3_12hz.code2wav:load",
    "s3gen": "stretto.codec.s3gen.codec:load",
    "tiny": "stretto.codec.tiny.codec:load",
    "xcodec": "stretto.codec.xcodec:load",
}


def load_codec(name: str, directory: Path, device: str = "cpu", num_codebooks: int | None = None) -> Codec:
    """Return the codec called `name`.

    Args:
        name: Name of the codec.
        directory: Folder with the weights.
        device: torch device.
        num_codebooks: Number of codebooks in use, or None for all.

    Raises:
        KeyError: For an unknown name; the message lists the known ones.
        CheckpointError: If files do not match, or there are too few codebooks.
    """
    _check(name)
    module, function = LOADERS[name].split(":")
    codec: Codec = getattr(import_module(module), function)(directory, device)
    if num_codebooks is not None:
        try:
            codec.spec = codec.spec.with_codebooks(num_codebooks)
        except ValueError as error:
            raise CheckpointError(f"{directory}: {error}") from error
    return codec


def load_exported(name: str, directory: Path, device: str = "cpu", threads: int = 1) -> Codec:
    """Return the codec called `name` from its exported file, run by onnxruntime.

    Raises:
        CheckpointError: If the file is that of another codec.
    """
    _check(name)
    codec: Codec = import_module("stretto.codec.onnx_runtime").load(directory, device, threads)
    if codec.spec.name != name:
        raise CheckpointError(f"{directory} holds an exported {codec.spec.name}, not {name}")
    return codec


def _check(name: str) -> None:
    if name not in LOADERS:
        raise KeyError(f"unknown codec {name!r}; known: {sorted(LOADERS)}")
