"""Requests with `reference_wav` and `target_text` become requests of our form."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.errors import InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.preprocessing.other_clients import CloningRequest
from stretto.preprocessing.request import Preprocessor, RawRequest, read_turns
from tests.fakes import FrameCounter
from tests.recordings import speech

WAV = speech(32_000, 16_000)
PADDED = np.concatenate([WAV, np.zeros(8_000, np.float32)])[None]


def cloning(*system: str) -> Family:
    """Return a family whose second task clones voices."""
    tts = replace(TINY.task("tts"), name="clone", system=system)
    return replace(TINY, tasks=(*TINY.tasks, tts))


def raw(family: Family, **inputs: Any) -> RawRequest:
    names = ("reference_wav", "reference_wav_len", "reference_text", "target_text")
    request = CloningRequest.from_inputs(dict.fromkeys(names) | inputs)
    assert request is not None
    return request.to_raw(family)


@pytest.mark.parametrize(("system", "words"), [(("audio", "text"), "é"), (("audio",), None)])
def test_recording_and_words_become_the_system_turn(system: tuple[str, ...], words: str | None) -> None:
    """Padding is cut off. A family that makes no use of the words does not get them."""
    given = {"reference_wav": PADDED, "reference_wav_len": 32_000, "reference_text": "é".encode()}
    made = raw(cloning(*system), **given, target_text=b"a well")
    voice, asked = read_turns(made)
    assert (voice.role, voice.audio_input, voice.text) == ("system", "pcm_in", words)
    assert (asked.role, asked.text, made.task, made.sample_rate) == ("user", "a well", "clone", 16_000)
    assert made.pcm_in is not None
    np.testing.assert_array_equal(made.pcm_in, WAV)
    assert json.loads(made.options or "") == {"output": {"sample_rate": 24_000}}


def test_absent_length_and_empty_words_are_left_out() -> None:
    made = raw(cloning("audio", "text"), reference_wav=WAV[None], reference_text=b"", target_text=b"a")
    assert made.pcm_in is not None
    assert len(made.pcm_in) == 32_000
    assert read_turns(made)[0].text is None


def test_text_alone_is_spoken_in_the_default_voice() -> None:
    made = raw(cloning("audio"), target_text=b"a well")
    assert (made.text, made.task, made.pcm_in, made.messages) == ("a well", "clone", None, None)


def test_other_requests_are_not_of_this_form() -> None:
    names = ("reference_wav", "reference_wav_len", "reference_text", "target_text")
    assert CloningRequest.from_inputs(dict.fromkeys(names)) is None


@pytest.mark.parametrize(
    ("system", "inputs", "message"),
    [
        ((), {"target_text": b"a"}, "reference_wav: expected no value (this model does not clone voices)"),
        (("audio",), {"reference_wav": PADDED}, "target_text: expected the text to speak, got none"),
        (("audio",), {"target_text": b"\xff"}, "target_text: expected UTF-8"),
        (("audio",), {"reference_text": b"\xff", "target_text": b"a"}, "reference_text: expected UTF-8"),
        (
            ("audio",),
            {"reference_text": b"a", "target_text": b"a"},
            "reference_wav: expected a recording, because reference_text is given, got none",
        ),
        *(
            (
                ("audio",),
                {"reference_wav": PADDED, "reference_wav_len": length, "target_text": b"a"},
                f"expected a number of samples in [1, 40000], the length of reference_wav, got {length}",
            )
            for length in (0, -1, 40_001)
        ),
    ],
    ids=range(8),
)
def test_invalid_input_error_names_its_field(system: tuple[str, ...], inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        raw(cloning(*system), **inputs)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("wav", "text", "message"),
    [
        (WAV * np.inf, "a", "reference_wav: expected finite samples"),
        (WAV * 100, "a", "reference_wav: expected samples in [-1, 1]"),
        (WAV * 0, "a", "reference_wav: expected a recording of a voice"),
        (WAV[:100], "a", "reference_wav: expected at least"),
        (np.tile(WAV, 20), "a", "reference_wav: expected at most"),
        (None, "", "target_text: expected"),
        (None, "a" * 5_000, "target_text: expected"),
    ],
    ids=range(7),
)
def test_later_checks_name_the_fields_of_the_client(
    tmp_path: Path, wav: np.ndarray | None, text: str, message: str
) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    preprocessor = Preprocessor(tmp_path, codec=FrameCounter())
    preprocessor.family = cloning("audio")
    given = {"target_text": text.encode()} | ({} if wav is None else {"reference_wav": wav[None]})
    with np.errstate(invalid="ignore"), pytest.raises(InvalidRequest) as refused:
        preprocessor.prepare(raw(preprocessor.family, **given))
    assert str(refused.value).startswith(message)
