"""Requests that are beyond the limits of a family."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np

from stretto.family.base import Family, FamilyOption

RATE = 24_000  # of recordings, in Hz
OPTIONS: dict[FamilyOption, Any] = {"exaggeration": 0.5, "instruct": "a", "piece": 0, "transliterate": True}
assert {*OPTIONS} == {*get_args(FamilyOption)} - {"beginning", "script_temperature"}


def talk(*turns: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return the inputs of a request with these turns and options."""
    inputs = {"messages": json.dumps(turns)}
    return inputs | {"options": json.dumps(options)} if options else inputs


def asked(
    text: str,
    turn: Mapping[str, Any] | None = None,
    pcm: np.ndarray | None = None,
    sample_rate: int = RATE,
    **options: Any,
) -> dict[str, Any]:
    """Return the inputs of a request.

    Args:
        turn: Content of the system turn, such as `{"codes": …}`; None for no such turn, or a recording.
        pcm: Samples of the voice's recording, float32 [n].
    """
    if turn is None and pcm is None:
        return {"text": text, "options": json.dumps(options)}
    content = {"audio": "pcm_in"} if turn is None else turn
    inputs: dict[str, Any] = talk({"role": "system", **content}, {"role": "user", "text": text}, **options)
    return inputs if pcm is None else inputs | {"pcm_in": pcm, "sample_rate": sample_rate}


def inputs_beyond_limits(family: Family) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield inputs beyond the limits of a family that speaks a text, and the beginnings of their errors."""
    yield asked("a" * (family.max_text_chars + 1)), f"text: expected at most {family.max_text_chars} characters, got "
    yield asked("a", language="klingon"), "options.language: expected "
    yield asked("a", voice="nobody"), "options.voice: expected "
    if family.text_track is None:
        yield asked("a", text_mode="open"), "options.text_mode: expected no value"
    for option, value in OPTIONS.items():
        if option not in family.options:
            yield asked("a", **{option: value}), f"options.{option}: expected "
    if "instruct" in family.options:
        yield asked("a", instruct="a" * (family.max_text_chars + 1)), "options.instruct: expected at most "
        yield asked("a", instruct="\ud800"), "options.instruct: expected "
    if "audio" in family.tasks[0].system:
        too_long = np.ones(int((family.max_audio_s + 1) * RATE), np.float32)
        yield asked("a", pcm=too_long), f"pcm_in: expected at most {family.max_audio_s:g} s"
        yield asked("a", pcm=too_long[::3], sample_rate=RATE // 3), f"pcm_in: expected at most {family.max_audio_s:g} s"
        yield asked("a", pcm=np.zeros(2 * RATE, np.float32)), "messages[0].audio: expected a recording of a voice, got"
        yield asked("a", pcm=np.full(2 * RATE, np.nan, np.float32)), "pcm_in: expected "
        yield asked("a", pcm=np.zeros(0, np.float32)), "pcm_in: expected "
