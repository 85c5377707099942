"""A small random release of PersonaPlex, its conversion, and requests for the replies of the authors' code."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from plugins.kyutai.lab.personaplex_replies import REPLIES, user_codes
from plugins.kyutai.lab.random_personaplex import voice_codes, write_release
from stretto.convert.command import main
from stretto.preprocessing.request import RawRequest

DATA = Path(__file__).parent / "data"


def make_checkpoint(folder: Path, **changed: Any) -> Path:
    """Write a release and convert it."""
    release = write_release(folder / "release", **changed)
    assert main(["personaplex", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


def replies() -> dict[str, np.ndarray]:
    """Return the authors' replies: `role`, `frames` [3, T, 9] and `long_frames`."""
    with np.load(DATA / "personaplex_replies.npz") as found:
        return {name: found[name] for name in found.files}


def request_of(number: int, num_frames: int | None = None, by_codes: bool = False, **options: Any) -> RawRequest:
    """Return the request for reply `number` of the fixture.

    Args:
        number: Number of the reply.
        num_frames: Number of the user's frames; None for all.
        by_codes: True to send the codes of the recording of the voice instead of its name.
        options: Further options.
    """
    seed, voice, role = REPLIES[number]
    return conversation(seed, voice, role, user_codes(number)[:, :num_frames], by_codes, **options)


def conversation(
    seed: int, voice: str, role: str, user: np.ndarray, by_codes: bool = False, **options: Any
) -> RawRequest:
    """Return a request with the user's codes [8, T]; seed 0 is greedy."""
    system: dict[str, Any] = {"text": role} if role else {}
    if by_codes:
        system["codes"] = voice_codes(voice).tolist()
    else:
        options["voice"] = voice
    if seed == 0:
        options |= {"temperature": 0.0, "depth": {"temperature": 0.0}}
    turns = [{"role": "system", **system}] if system else []
    turns.append({"role": "user", "codes": user.tolist()})
    return RawRequest(messages=json.dumps(turns), options=json.dumps({"seed": seed, **options}))
