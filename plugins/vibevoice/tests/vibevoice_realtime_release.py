"""Replies of the authors' code to small random VibeVoice Realtime releases, and the prompts that they belong to."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.authors.reply_fixture import digest
from plugins.vibevoice.lab.random_vibevoice_realtime import inputs, write_release
from plugins.vibevoice.lab.vibevoice_realtime_replies import REPLIES, text_of
from stretto.convert.command import main as convert
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.prompting import stream0_rows
from stretto.records.prompt import Prompt
from stretto.records.sampling import LatentSampling
from stretto_vibevoice.vibevoice_realtime.family import END_OF_TEXT, VibeVoiceRealtimeVocabulary

DATA = Path(__file__).parent / "data" / "vibevoice_realtime_replies.npz"


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture, which must be those of the weights of today."""
    found = dict(np.load(DATA))
    assert found.pop("inputs") == digest(inputs()), f"{DATA}: written by lab/vibevoice_realtime_replies.py"
    return found


def convert_release(folder: Path, kind: str = "small") -> Path:
    """Write a release of a kind and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind)
    assert convert(["vibevoice-realtime", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def prompts_of(checkpoint: Path, max_rows: int) -> dict[str, Prompt]:
    """Return the prompts of the replies in the fixture, keyed by seed."""
    family, known = family_at(checkpoint), VibeVoiceRealtimeVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    found = {}
    for seed, name, number, scale, steps in REPLIES:
        at = [voice.name for voice in known.voices].index(name.lower())
        rows = stream0_rows(family.layout, [*range(known.first_rows[at], known.first_rows[at + 1] - 1)])
        sampling = family.tasks[0].sampling
        sampling = replace(
            sampling,
            audio=replace(sampling.audio, max_rows=max_rows),
            latents=LatentSampling(steps),
            guidance_scale=scale,
            seed=seed,
        )
        found[str(seed)] = Prompt("tts", rows, sampling, track=(*text_of(seed, number), END_OF_TEXT))
    return found
