"""Replies of the authors' T3 for Chatterbox releases, and the engine's prompts for these replies."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from plugins.chatterbox.lab.random_chatterbox import NANO, convert, convert_turbo
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.prompting import Manner, Piece
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import InputAudio, Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import ExpectedReply
from stretto_chatterbox.family import END_OF_SPEECH, TURBO, ChatterboxVocabulary, TurboVocabulary
from stretto_chatterbox.prompt import ChatterboxTemplate, TurboTemplate, open_chatterbox, open_turbo

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "chatterbox_replies.json").read_text())
REPLIES: dict[str, list[dict[str, Any]]] = {name: each["replies"] for name, each in RECORD.items()}
LEAST_LEAD = {"english": 2e-3, "multilingual": 2e-3, "turbo": 5e-4, "nano": 5e-4}
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


def inputs_of(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of the request whose prompt a fixture reply has."""
    options = {name: reply[name] for name in ("voice", "language") if name in reply}
    return asked(reply["text"], **options)


def prompt_of(reply: dict[str, Any], release: SmallRelease) -> Prompt:
    """Return the prompt for a fixture reply, with its sampling options."""
    audio = SegmentSampling(
        reply["temperature"],
        top_k=reply.get("top_k", 0),
        top_p=reply["top_p"],
        max_rows=RECORD[release.size]["num_codes"],
    )
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=audio,
        min_p=reply.get("min_p", 0.0),
        guidance_scale=1 + reply.get("weight", 0.0),
        repetition_penalty=reply["penalty"],
        seed=reply["seed"],
    )
    return Prompt("tts", release.preprocessor.prepare(RawRequest(**inputs_of(reply))).rows, sampling)


def table_of(release: SmallRelease) -> np.ndarray:
    """Return the embedding table of a checkpoint."""
    names = ("model.embed_tokens.weight", "transformer.wte.weight")
    return next(release.weights[name] for name in names if name in release.weights).float().numpy()


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """Return the fixture's replies, also to prompts with the vectors of the voice in the rows of another one.

    A prompt with the same rows but no vectors comes first. Both requests of a guided pair read the vectors.
    """
    known = known_at(release.checkpoint)
    table = table_of(release)
    expected = dict[str, ExpectedReply]()
    for number, reply in enumerate(REPLIES[release.size]):
        prompt = prompt_of(reply, release)
        rows = rows_of(reply, known)
        expected[f"r{number}"] = ExpectedReply(prompt, rows)
        if number > 1:
            continue
        other = "default" if reply["voice"] == "anna" else "anna"
        if isinstance(known, TurboVocabulary):  # the first row is the speaker, and codes follow
            own_rows = table[known.speaker(reply["voice"])][None]
            other_prompt = replace(prompt, rows=prompt.rows.copy())
            other_prompt.rows[0, 0] = known.speaker(other)
        else:
            own_rows = table[list(known.voice(reply["voice"]))]
            other_prompt = prompt_of(reply | {"voice": other}, release)
            last = (InputAudio(known.num_voice_rows - 1, 1, own_rows[-1:]),)
            expected[f"emotion {number}"] = ExpectedReply(replace(prompt, audios=last), rows)
        expected[f"other {number}"] = ExpectedReply(other_prompt, partial(_assert_other, rows))
        audios = (InputAudio(0, len(own_rows), own_rows),)
        expected[f"vectors {number}"] = ExpectedReply(replace(other_prompt, audios=audios), rows)
    return expected


def _assert_other(rows: list[list[int]], generated: np.ndarray) -> None:
    assert generated.tolist() != rows


def rows_of(reply: dict[str, Any], known: ChatterboxVocabulary | TurboVocabulary) -> list[list[int]]:
    """Return a reply's codes as engine rows; the last row is the end, which was sampled or forced by the limit."""
    start = known.codes.start if isinstance(known, TurboVocabulary) else known.speech.start
    codes = [code for code in reply["codes"] if code != END_OF_SPEECH]
    return [[start + code - (code > END_OF_SPEECH)] for code in codes] + [[known.end]]
