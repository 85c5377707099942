"""Codecs by name; a codec's library is imported on first use."""

from importlib import import_module
from pathlib import Path

from python_backend.codec.base import Codec

LOADERS = {
    "dac": "python_backend.codec.dac:load",
    "higgs": "python_backend.codec.higgs:load",
    "tiny": "python_backend.codec.tiny:load",
    "xcodec": "python_backend.codec.xcodec:load",
}


def load_codec(name: str, directory: Path, device: str = "cpu") -> Codec:
    """The codec called `name`, with the weights in `directory`; KeyError lists the names there are."""
    if name not in LOADERS:
        raise KeyError(f"unknown codec {name!r}; known: {sorted(LOADERS)}")
    module, function = LOADERS[name].split(":")
    return getattr(import_module(module), function)(directory, device)
