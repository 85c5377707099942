"""Codecs by name; a codec's library is imported on first use."""

from importlib import import_module
from pathlib import Path

from python_backend.codec.base import Codec
from python_backend.errors import CheckpointError

LOADERS = {
    "dac": "python_backend.codec.dac:load",
    "encodec": "python_backend.codec.encodec:load",
    "espnet_dac": "python_backend.codec.espnet_dac:load",
    "higgs": "python_backend.codec.higgs:load",
    "mimi": "python_backend.codec.mimi:load",
    "tiny": "python_backend.codec.tiny:load",
    "xcodec": "python_backend.codec.xcodec:load",
}

ONNX_LOADER = "python_backend.codec.onnx_runtime:load"


def load_codec(
    name: str, directory: Path, device: str = "cpu", runtime: str = "torch", right_frames: int | None = None
) -> Codec:
    """The codec called `name`, with the weights in `directory`; KeyError lists the names there are.

    runtime: `torch`, or `onnx` to decode from the exported file. right_frames: less right context than exactness asks
    for; ValueError if out of range.
    """
    if name not in LOADERS:
        raise KeyError(f"unknown codec {name!r}; known: {sorted(LOADERS)}")
    module, function = (ONNX_LOADER if runtime == "onnx" else LOADERS[name]).split(":")
    codec: Codec = getattr(import_module(module), function)(directory, device)
    if codec.spec.name != name:
        raise CheckpointError(f"{directory} holds the codec {codec.spec.name}, not {name}")
    if right_frames is not None:
        codec.spec = codec.spec.with_right_frames(right_frames)
    return codec
