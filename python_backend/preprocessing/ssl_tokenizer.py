"""The seam for OpusLM's semantic codes of audio: an optional extra, as it needs ESPnet.

A checkpoint whose folder has `ssl_tokenizer/` (XEUS, and the k-means of its layer 18) hears samples, if a package is
installed that offers the entry point `xeus` in the group `stretto.ssl_tokenizers`: a callable from that folder to an
SslTokenizer. Any other checkpoint takes audio as codes.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np

from python_backend.errors import CheckpointError

FOLDER, GROUP, NAME = "ssl_tokenizer", "stretto.ssl_tokenizers", "xeus"


class SslTokenizer(Protocol):
    """Audio to semantic codes, 50 a second."""

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Codes [T] int64 of mono `pcm` [n] float32 at 16 kHz, T about n / 320."""
        ...


def load_ssl_tokenizer(checkpoint: Path) -> SslTokenizer | None:
    """The tokenizer of the checkpoint in a folder; None where the folder brings none.

    CheckpointError where it brings one and nothing is installed that reads it.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        return None
    for entry_point in entry_points(group=GROUP, name=NAME):
        return entry_point.load()(folder)
    raise CheckpointError(f"{folder}: expected an installed package with the entry point {NAME!r} in {GROUP}, got none")
