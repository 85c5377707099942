"""Replies of OpenMOSS's own code, with the random releases of `lab` (`lab/moss_tts_replies.py`)."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.authors.reply_fixture import digest
from plugins.moss.lab.random_moss import command, inputs, write_release
from stretto.convert.command import main as convert

DATA = Path(__file__).parent / "data" / "moss_tts_replies.npz"


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture, which must be those of the weights of today."""
    found = dict(np.load(DATA))
    assert found.pop("inputs") == digest(inputs()), f"{DATA}: write it again (lab/moss_tts_replies.py)"
    return found


def convert_release(folder: Path, kind: str = "small") -> Path:
    """Write a release of a kind and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind)
    assert convert([*command(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"
