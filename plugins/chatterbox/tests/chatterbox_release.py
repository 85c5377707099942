"""Replies of the authors' T3 for Chatterbox releases, and the engine's prompts for these replies."""

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from plugins.chatterbox.lab.random_chatterbox import NANO, convert, convert_turbo
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.prompting import Manner, Piece
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto_chatterbox.family import END_OF_SPEECH, TURBO, ChatterboxVocabulary, TurboVocabulary
from stretto_chatterbox.prompt import ChatterboxTemplate, TurboTemplate, open_chatterbox, open_turbo

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "chatterbox_replies.json").read_text())
REPLIES: dict[str, list[dict[str, Any]]] = {name: each["replies"] for name, each in RECORD.items()}
# Functions that write a small release to a folder and convert it.
RELEASES: Mapping[str, Callable[[Path], Path]] = {
    "english": convert,
    "multilingual": partial(convert, is_multilingual=True),
    "turbo": convert_turbo,
    "nano": partial(convert_turbo, sizes=NANO),
}


def is_turbo(checkpoint: Path) -> bool:
    """Return True if a checkpoint is Turbo or Nano."""
    return config_at(checkpoint)[VOCABULARY].get("release") == TURBO


def open_release(checkpoint: Path) -> ChatterboxTemplate | TurboTemplate:
    """Return the template of a checkpoint."""
    return open_turbo(checkpoint) if is_turbo(checkpoint) else open_chatterbox(checkpoint)


@cache
def opened(checkpoint: Path) -> tuple[ChatterboxTemplate | TurboTemplate, Family]:
    """Return the template and the family of a checkpoint that stays unchanged, loaded once."""
    return open_release(checkpoint), family_at(checkpoint)


def known_at(checkpoint: Path) -> ChatterboxVocabulary | TurboVocabulary:
    """Return the vocabulary of a checkpoint."""
    kind = TurboVocabulary if is_turbo(checkpoint) else ChatterboxVocabulary
    return kind.from_record(config_at(checkpoint)[VOCABULARY])


def write(
    template: ChatterboxTemplate | TurboTemplate,
    family: Family,
    text: str,
    voice: str = "default",
    language: str | None = None,
) -> Any:
    """Return the prompt rows for a text."""
    piece = Piece("user", "text", text=text)
    return template.write(family.tasks[0], (piece,), voice, Manner(language=language)).rows


def options_of(reply: dict[str, Any], num_codes: int) -> dict[str, Any]:
    """Return the options of the request that produces a fixture reply."""
    drawn = {name: reply[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in reply}
    guided = {"guidance_scale": 1 + reply["weight"]} if "weight" in reply else {}
    language = {"language": reply["language"]} if "language" in reply else {}
    others = {"repetition_penalty": reply["penalty"], "seed": reply["seed"], "voice": reply["voice"]}
    return {"audio": drawn | {"max_rows": num_codes}, **guided, **language, **others, "output": {"codes": True}}


def prompt_of(
    reply: dict[str, Any], num_codes: int, template: ChatterboxTemplate | TurboTemplate, family: Family
) -> Prompt:
    """Return the prompt for a fixture reply, with its sampling options."""
    drawn = SegmentSampling(reply["temperature"], top_k=reply.get("top_k", 0), top_p=reply["top_p"], max_rows=num_codes)
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=drawn,
        min_p=reply.get("min_p", 0.0),
        guidance_scale=1 + reply.get("weight", 0.0),
        repetition_penalty=reply["penalty"],
        seed=reply["seed"],
    )
    return Prompt("tts", write(template, family, reply["text"], reply["voice"], reply.get("language")), sampling)


def rows_of(reply: dict[str, Any], known: ChatterboxVocabulary | TurboVocabulary) -> list[list[int]]:
    """Return a reply's codes as engine rows; the last row is the end, which was sampled or forced by the limit."""
    start = known.codes.start if isinstance(known, TurboVocabulary) else known.speech.start
    codes = [code for code in reply["codes"] if code != END_OF_SPEECH]
    return [[start + code - (code > END_OF_SPEECH)] for code in codes] + [[known.end]]
