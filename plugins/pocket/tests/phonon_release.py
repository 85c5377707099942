"""Replies of transformers' class and of the authors' runtime, with the random releases of `lab`.

`latents`, `end_logits` and `nudged` are the class's, by kind and seed: `nudged` is the largest difference in a latent,
by frame, that three changes of 1e-6 in the first frame come to. `pcm` has every eighth sample of the first eight frames
of TEXTS without noise, by the runtime, and the numbers of samples are those if speech never ends, or ends in the first
frame of each piece.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.authors.reply_fixture import digest
from plugins.pocket.lab.random_phonon import inputs, write_release
from stretto.convert.command import main as convert

DATA = Path(__file__).parent / "data" / "phonon_replies.npz"


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture, which must be those of the weights of today."""
    found = dict(np.load(DATA))
    assert found.pop("inputs") == digest(inputs()), f"{DATA}: write it again (lab/phonon_replies.py)"
    return found


def convert_release(folder: Path, kind: str = "small") -> Path:
    """Write a release of a kind and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind)
    assert convert(["phonon", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"
