"""A reply that reads a text aloud is at most as long as the longest speech for this text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stretto.codecs.base import CodecSpec, Stateful
from stretto.family.speech_limits import SpeechLimits
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto_contract.spoken_units import pauses_s, spoken_units
from tests.fakes import FakeCodec

RATE = 80 / 3  # frames per second
TEXT = "Good day, Leo!"
UNITS = 10 + 2 * 4 + 2 * 4  # small letters and blanks, capitals, marks


class Silent(FakeCodec):
    """Codec of the bundled model's frame rate."""

    spec = CodecSpec("silent", 24_000, 900, num_codebooks=7, codebook_size=1024, streaming=Stateful())


@pytest.fixture
def preprocessor(tmp_path: Path) -> Preprocessor:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    return Preprocessor(tmp_path, codec=Silent())


def prepared(preprocessor: Preprocessor, text: str = TEXT, **options: Any) -> Prompt:
    return preprocessor.prepare(RawRequest(text=text, options=json.dumps(options)))


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", 0),
        ("cat", 3),
        ("a b", 3),
        ("USB", 12),
        ("7", 8),
        ("cats.", 8),
        ("5 €", 17),
        ("你好", 8),
        ("ｶ", 4),
        ("é", 1),
    ],
)
def test_units_of_a_text_grow_with_the_time_to_speak_it(text: str, units: int) -> None:
    assert spoken_units(text) == units


def test_request_without_a_length_has_the_ceiling_of_its_text(preprocessor: Preprocessor) -> None:
    family = preprocessor.family
    task = family.task("tts")
    prompt = prepared(preprocessor)
    seconds = task.speech_limits.base_s + task.speech_limits.unit_s * UNITS
    assert prompt.sampling.audio.max_rows == family.num_audio_rows(round(seconds * RATE + 0.5))
    assert prompt.has_ceiling
    longer = prepared(preprocessor, 2 * f"{TEXT} ").sampling.audio.max_rows
    assert longer > prompt.sampling.audio.max_rows


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("a", 0.0), ('a <break time="3s"/> b', 3.0), ("[pause 1.5s] a [pause 500ms]", 2.0), ("pause 3s", 0.0)],
)
def test_pauses_of_a_text_raise_its_ceiling(text: str, seconds: float) -> None:
    limits = SpeechLimits(base_s=1.0, unit_s=0.0)
    assert pauses_s(text) == seconds
    assert limits.max_frames(text, 10.0) == 10 + 10 * seconds


def test_a_long_text_has_the_maximum_of_the_task(preprocessor: Preprocessor) -> None:
    prompt = prepared(preprocessor, "a cat " * 49)
    assert prompt.sampling.audio.max_rows == preprocessor.family.task("tts").sampling.audio.max_rows
    assert not prompt.has_ceiling


@pytest.mark.parametrize(
    "options", [{"max_audio_s": 9}, {"audio": {"max_rows": 300}}, {"audio": {"min_rows": 300}}], ids=str
)
def test_a_length_in_the_request_replaces_the_ceiling(preprocessor: Preprocessor, options: dict[str, Any]) -> None:
    prompt = prepared(preprocessor, "Hi", **options)
    assert not prompt.has_ceiling
    assert prompt.sampling.audio.max_rows >= 9 * RATE


def test_a_family_may_have_another_rate(preprocessor: Preprocessor) -> None:
    family = preprocessor.family
    tasks = tuple(replace(task, speech_limits=SpeechLimits(base_s=2.0, unit_s=0.0)) for task in family.tasks)
    preprocessor.family = replace(family, tasks=tasks)
    assert prepared(preprocessor).sampling.audio.max_rows == family.num_audio_rows(54)
