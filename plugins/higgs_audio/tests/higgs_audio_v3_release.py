"""Replies of mlx-audio for the random Higgs Audio v3 releases of `lab`, and converted releases."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.authors.reply_fixture import digest
from plugins.higgs_audio.lab.higgs_audio_v3_replies import inputs
from plugins.higgs_audio.lab.random_higgs_audio_v3 import KINDS, write_release
from stretto.convert.command import main as convert
from stretto.family.base import Family

DATA = Path(__file__).parent / "data" / "higgs_audio_v3_replies.npz"


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture, which must be those of the weights of today."""
    found = dict(np.load(DATA))
    assert found.pop("inputs") == digest(inputs()), f"{DATA}: write it again (lab/higgs_audio_v3_replies.py)"
    return found


def command(release: Path) -> list[str]:
    """Return the converter's command line for a release, without `--out`."""
    folder = str(release)
    return ["higgs-audio-v3", "--model", folder, "--config", f"{folder}/config.json", "--tokenizer", folder]


def convert_release(folder: Path, kind: str = "small") -> Path:
    """Write a release of a kind and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind)
    assert convert([*command(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def absolute(family: Family, kind: str, rows: np.ndarray) -> list[list[int]]:
    """Return rows of mlx-audio, text ids beside -1 or ids of codebooks, as rows of the family's ids."""
    width = KINDS[kind]["num_codes"] + 2
    is_text = rows[:, 1:2] < 0
    text = np.where(np.arange(rows.shape[1]) == 0, rows, family.layout.pad_id)
    codes = rows + [ids.start for ids in family.layout.audio]
    assert ((rows < width) | is_text).all()
    return np.where(is_text, text, codes).tolist()
