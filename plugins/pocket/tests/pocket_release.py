"""Replies of the authors' code (pocket-tts 4.0.1), computed in float64, with the random releases of `lab`.

There, too, noise is a function of seed, position and word (`engine/sampling/noise.py`), not drawn by torch's generator.
`nudged` is the largest difference in a latent, by frame, that three changes of 1e-6 in the first frame come to. The
samples are those of the first five frames, and the last 480. `pieces` has the tokens and the tail of each piece of
`CUT_TEXTS`, as JSON. `voice` has the latents of `recording()`, and `cloned`
those of the first frames of the same text in that voice.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.authors.reply_fixture import digest
from plugins.pocket.lab.random_pocket import inputs, recording, write_release
from stretto.convert.command import main as convert
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt

DATA = Path(__file__).parent / "data" / "pocket_tts_replies.npz"
KINDS = ("english", "english_2m", "english_18m")


@dataclass(frozen=True)
class Reply:
    """A reply of the authors' code."""

    text: str
    prepared: str
    tokens: list[int]
    pieces: str
    latents: np.ndarray
    ended: int
    tail: int
    end_logits: np.ndarray
    nudged: np.ndarray
    pcm: np.ndarray
    pcm_last: np.ndarray
    seed: int
    voice: np.ndarray
    cloned: np.ndarray
    cloned_nudged: np.ndarray


@cache
def stored() -> dict[str, Any]:
    """Return the arrays of the fixture, which must be those of the weights and the recording of today."""
    found = dict(np.load(DATA))
    assert found.pop("inputs") == digest(inputs(KINDS)), f"{DATA}: write it again (lab/pocket_tts_replies.py)"
    return found


def reply(kind: str) -> Reply:
    """Return the reply from a release."""
    found = stored()
    values: dict[str, Any] = {name: found[f"{kind}.{name}"] for name in Reply.__dataclass_fields__}
    plain = {name: value.tolist() if value.ndim == 0 or name == "tokens" else value for name, value in values.items()}
    return Reply(**plain)


def convert_release(folder: Path, kind: str, clones: bool = True) -> Path:
    """Write a release of a kind and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind, clones)
    assert convert(["pocket-tts", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def cloning(text: str, pcm: np.ndarray | None = None, sample_rate: int = 24_000, options: str = "{}") -> RawRequest:
    """Return a request for a text in the voice of a recording, by default that of the fixture."""
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": text}]
    pcm = recording() if pcm is None else pcm
    return RawRequest(messages=json.dumps(turns), pcm_in=pcm, sample_rate=sample_rate, options=options)


def seeded(prompt: Prompt, seed: int) -> Prompt:
    """Return a prompt with another seed."""
    return replace(prompt, sampling=replace(prompt.sampling, seed=seed))


def growing(prompt_of: Callable[[str], Prompt]) -> Prompt:
    """Return a prompt of almost two KV blocks, whose reply needs a third block, which other requests have by then."""
    text = "one more"
    while len((prompt := prompt_of(text)).rows) < 54:
        text += " so"
    assert len(prompt.rows) < 60
    audio_sampling = replace(prompt.sampling.audio, min_rows=30)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio_sampling))
