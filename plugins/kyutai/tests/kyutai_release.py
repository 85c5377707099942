"""A small random Kyutai STT release, its conversion, and the replies of the authors' code."""

from pathlib import Path

import numpy as np

from plugins.kyutai.lab.random_kyutai_stt import write_release
from stretto.convert.command import main

DATA = Path(__file__).parent / "data"


def words(release: Path, out: Path) -> list[str]:
    """Return the command line that converts a release."""
    return ["kyutai-stt", "--model", str(release), "--config", str(release / "config.json"), "--out", str(out)]


def make_checkpoint(folder: Path, **changed: object) -> Path:
    """Write a release and convert it."""
    assert main(words(write_release(folder / "release", **changed), folder / "checkpoint")) == 0
    return folder / "checkpoint"


def replies() -> dict[str, np.ndarray]:
    """Return the authors' replies: `codes` [32, T], `text` [T + 1], and for Mimi `pcm` [n], `mimi_codes` [8, F]."""
    with np.load(DATA / "kyutai_stt_replies.npz") as found:
        return {name: found[name] for name in found.files}
