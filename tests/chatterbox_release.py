"""Replies of the authors' own T3 of Chatterbox, and the engine's prompts for them."""

import json
from pathlib import Path
from typing import Any

from stretto.families.base import Family
from stretto.families.chatterbox.family import END_OF_SPEECH, ChatterboxVocabulary, TurboVocabulary
from stretto.families.chatterbox.prompt import ChatterboxTemplate, TurboTemplate
from stretto.families.prompting import Piece
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "chatterbox_replies.json").read_text())
REPLIES: list[dict[str, Any]] = RECORD["replies"]
TURBO: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "chatterbox_turbo_replies.json").read_text())


def write(template: ChatterboxTemplate | TurboTemplate, family: Family, text: str, voice: str = "default") -> Any:
    """The rows of a text."""
    return template.write(family.tasks[0], (Piece("user", "text", text=text),), voice).rows


def prompt_of(reply: dict[str, Any], template: ChatterboxTemplate, family: Family) -> Prompt:
    """Return the prompt of a reply of the fixture, with its sampling."""
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(reply["temperature"], top_p=reply["top_p"], max_rows=RECORD["num_codes"]),
        min_p=reply["min_p"],
        guidance_scale=1 + reply["weight"],
        repetition_penalty=reply["penalty"],
        seed=reply["seed"],
    )
    return Prompt("tts", write(template, family, reply["text"], reply["voice"]), sampling)


def rows_of(reply: dict[str, Any], known: ChatterboxVocabulary) -> list[list[int]]:
    """A reply's codes as the engine's rows; the last is the end, drawn or put there by the limit."""
    codes = [code for code in reply["codes"] if code != END_OF_SPEECH]
    return [[known.speech.start + code - (code > END_OF_SPEECH)] for code in codes] + [[known.end]]


def turbo_prompt_of(reply: dict[str, Any], template: TurboTemplate, family: Family) -> Prompt:
    """Return the prompt of a reply of Turbo's fixture, with its sampling."""
    drawn = SegmentSampling(
        reply["temperature"], top_k=reply["top_k"], top_p=reply["top_p"], max_rows=TURBO["num_codes"]
    )
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=drawn,
        repetition_penalty=reply["penalty"],
        seed=reply["seed"],
    )
    return Prompt("tts", write(template, family, reply["text"], reply["voice"]), sampling)


def turbo_rows_of(reply: dict[str, Any], known: TurboVocabulary) -> list[list[int]]:
    """A reply's codes as the engine's rows; the last is the end, drawn or put there by the limit."""
    codes = [code for code in reply["codes"] if code != END_OF_SPEECH]
    return [[known.codes.start + code] for code in codes] + [[known.end]]
