"""Replies of the authors' code (voxcpm 2.0.3), computed in float64, with the random releases of `lab`.

There, too, noise is a function of seed, position and word (`engine/sampling/noise.py`), not drawn by torch's generator.
`nudged` is the largest difference in a patch, by patch, that three changes of 1e-6 in the first patch come to. The
samples are those of the first and of the last 1500.
"""

import json
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from lab.authors.reply_fixture import digest
from plugins.voxcpm2.lab.random_voxcpm2 import inputs, recording, write_release
from stretto.convert.command import main as convert
from stretto.preprocessing.request import RawRequest

DATA = Path(__file__).parent / "data" / "voxcpm2_replies.npz"
# We encode in float32, where latents of up to 25 differ by 4e-5 from those of the authors' code in float64.
LATENT_TOLERANCE = 1e-3
KINDS, MODES = ("plain", "scaled"), ("zero", "reference", "continuation", "both")
TEXT, PROMPT_TEXT, SEED, MAX_PATCHES = "hello, 你好 you.", "ab ", 7, 20


@dataclass(frozen=True)
class Reply:
    """A reply with the rows of its prompt: ids [P], a mask [P] of patches, and the patches [P, D]."""

    text: np.ndarray
    is_audio: np.ndarray
    latents_before: np.ndarray
    latents: np.ndarray
    stop_lead: np.ndarray
    nudged: np.ndarray
    num_samples: np.ndarray
    pcm: np.ndarray
    pcm_last: np.ndarray

    @property
    def has_ended(self) -> bool:
        """True if the model ended the reply; False if the limit did."""
        return bool(self.stop_lead[-1] > 0)


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture, which must be those of the weights and recordings of today."""
    found = dict(np.load(DATA))
    assert found.pop("inputs") == digest(inputs(KINDS)), (
        f"{DATA}: write it again (plugins/voxcpm2/lab/voxcpm2_replies.py)"
    )
    return found


def reply(kind: str, mode: str) -> Reply:
    """Return the reply from a release in a mode."""
    return Reply(**{name: stored()[f"{kind}.{mode}.{name}"] for name in Reply.__dataclass_fields__})


def convert_release(folder: Path, kind: str = "plain") -> Path:
    """Write a release of a kind and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind)
    assert convert(["voxcpm2", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def wave_file(name: str) -> bytes:
    """Write a recording of the fixture to a file."""
    file = BytesIO()
    soundfile.write(file, recording(name), 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def request(mode: str, **options: Any) -> RawRequest:
    """Return the request for a fixture reply."""
    turns: list[dict[str, str]] = []
    files = []
    if mode in ("reference", "both"):
        turns.append({"role": "system", "audio": "audio"})
        files.append(wave_file("reference"))
    if mode in ("continuation", "both"):
        turns += [{"role": "user", "text": PROMPT_TEXT}, {"role": "assistant", "audio": "audio"}]
        files.append(wave_file("prompt"))
    turns.append({"role": "user", "text": TEXT})
    options = {"audio": {"max_rows": MAX_PATCHES}, "seed": SEED} | options
    return RawRequest(messages=json.dumps(turns), audio=tuple(files) or None, options=json.dumps(options))
