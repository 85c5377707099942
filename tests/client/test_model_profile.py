"""Model profiles from this version, from earlier and later versions, and missing profiles."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto_client import ModelProfile
from stretto_client.errors import ServerFailed
from stretto_client.model_profile import TaskProfile, known_profile
from stretto_contract.speech_checks import USUAL_SIGNALS, Pace, SignalLimits
from tests.client.fake_server import PROFILE

MANY = {str(number): 0 for number in range(201)}


def read(record: Any) -> ModelProfile:
    text = record if isinstance(record, str) else json.dumps(record)
    return ModelProfile.from_config({"parameters": {"profile": {"string_value": text}}})


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in PROFILE.items() if name not in names}


def test_model_profile_is_parsed() -> None:
    profile = read(PROFILE | {"reads_live_text": True})
    assert (profile.family, profile.sample_rate, profile.voices) == ("tiny", 16_000, ("slt", "rms"))
    assert (profile.times_words, profile.reads_live_text, profile.max_audio_s) == (True, True, 9.6)
    speaking = profile.task("tts")
    assert speaking == TaskProfile("tts", ("text",), speaks=True)
    assert profile.task("sing") is None


def test_profiles_of_older_and_newer_repositories_are_readable() -> None:
    earlier = read(without("reads_live_text", "times_words", "voices", "tasks", "max_audio_s"))
    assert (earlier.reads_live_text, earlier.times_words, earlier.voices, earlier.tasks) == (False, False, (), ())
    later = read(PROFILE | {"sings": True, "tasks": [{"name": "sing", "in_tune": False}]})
    assert later.tasks == (TaskProfile("sing"),)
    assert read(PROFILE | {"max_audio_s": 30}).max_audio_s == 30.0
    signals = SignalLimits(hum_s=0.5, min_units=30)
    assert read(PROFILE | {"signals": {"hum_s": 0.5, "min_units": 30, "loud": 1}}).signals == signals
    assert read(PROFILE).signals == USUAL_SIGNALS
    pace = {"seconds": {"": 0.1, "a": 0.05}, "least": 0.9, "most": 1.2}
    assert read(PROFILE | {"signals": {"pace": pace}}).signals.pace == Pace({"": 0.1, "a": 0.05}, 0.9, 1.2)
    assert read(PROFILE | {"signals": {"pace": None}}).signals.pace is None


@pytest.mark.parametrize("error", [ValueError("no profile"), ServerFailed("no answer")])
async def test_speech_is_measured_even_if_the_profile_cannot_be_read(error: Exception) -> None:
    async def fetch() -> ModelProfile:
        raise error

    assert await known_profile(fetch) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "profile: expected JSON, got an error"),
        ("[" * 100_000, "profile: expected JSON, got an error"),
        ([], r"profile: expected an object, got \[\]"),
        (without("family"), r"profile\.family: expected a value, got none"),
        (PROFILE | {"sample_rate": "16000"}, r"profile\.sample_rate: expected an integer, got '16000'"),
        (PROFILE | {"sample_rate": True}, r"profile\.sample_rate: expected an integer, got True"),
        (PROFILE | {"max_text_chars": 0}, "profile: expected sample_rate and max_text_chars above 0, got 16000 and 0"),
        (PROFILE | {"max_audio_s": None}, r"profile\.max_audio_s: expected a finite number, got None"),
        (PROFILE | {"voices": "slt"}, r"profile\.voices: expected a list of texts, got 'slt'"),
        (PROFILE | {"voices": [1]}, r"profile\.voices: expected a list of texts, got \[1\]"),
        (PROFILE | {"reads_live_text": 1}, r"profile\.reads_live_text: expected true or false, got 1"),
        (PROFILE | {"signals": {"hum_s": "long"}}, r"profile\.signals\.hum_s: expected a finite number, got 'long'"),
        (
            PROFILE | {"signals": {"pace": {"seconds": []}}},
            r"pace\.seconds: expected an object with at most",
        ),
        (
            PROFILE | {"signals": {"pace": {"seconds": MANY}}},
            "an object with at most 200 entries, got {'0': 0",
        ),
        (PROFILE | {"signals": {"pace": {"seconds": {"a": None}}}}, r"pace\.seconds\.a: expected a finite number"),
        (PROFILE | {"voice_details": []}, r"profile\.voice_details: expected an object, got \[\]"),
        (
            PROFILE | {"voice_details": {"slt": {"gender": 1}}},
            r"profile\.voice_details\.slt\.gender: expected text, got 1",
        ),
        (PROFILE | {"tasks": {}}, r"profile\.tasks: expected a list, got {}"),
        (PROFILE | {"tasks": [3]}, r"profile\.tasks\[0\]: expected an object, got 3"),
        (PROFILE | {"tasks": [{}]}, r"profile\.tasks\[0\]\.name: expected a value, got none"),
    ],
)
def test_invalid_profiles_are_refused_in_one_sentence(record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(record)


def test_missing_model_description_is_reported() -> None:
    with pytest.raises(ValueError, match="does not describe its model"):
        ModelProfile.from_config({})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@pytest.mark.slow
@given(
    changes=st.dictionaries(
        st.sampled_from([*PROFILE, "reads_live_text", "signals", "voice_details"]), VALUES, max_size=3
    )
)
def test_any_profile_parses_or_raises_a_value_error(changes: dict[str, Any]) -> None:
    try:
        profile = read(PROFILE | changes)
    except ValueError as error:
        assert str(error).startswith("profile"), error  # noqa: PT017
    else:
        assert profile.sample_rate > 0
