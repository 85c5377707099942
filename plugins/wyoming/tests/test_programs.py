"""Programs, voices and languages in `info`."""

import dataclasses
from typing import Any

import pytest

from plugins.wyoming.tests.conftest import Begin
from stretto_client import ModelProfile
from stretto_contract.languages import CODES
from stretto_gateway.answers import ApiError
from stretto_gateway.voice_store import StoredVoice
from stretto_wyoming.fields import VoiceChoice
from stretto_wyoming.programs import chosen_fields, language_codes, offered_voices
from tests.client.fake_server import PROFILE
from tests.gateway.conftest import SPOKEN

PLAIN = ModelProfile("tiny", 24_000, 100, voices=("slt", "rms"), languages=("english", "en", "klingon", "german"))
REQUIRING = dataclasses.replace(PLAIN, requires_language=True, options=("language",))


def artifact(name: str, description: str, **fields: Any) -> dict[str, Any]:
    attribution = {"name": "Stretto", "url": ""}
    about = {"description": description, "attribution": attribution}
    return {"name": name, "installed": True, "version": "0.2.0"} | about | fields


async def test_description_lists_programs_and_voices(begin: Begin) -> None:
    profile = PROFILE | {"languages": ["english"], "voice_details": {"slt": {"language": "en-US", "gender": "female"}}}
    _, line = await begin(SPOKEN, profile)
    await line.send("describe")
    speakers = [{"name": "slt"}, {"name": "rms"}]
    voices = [
        artifact("tiny", "tiny, default voice", languages=["en"], speakers=speakers),
        artifact("slt", "slt, female, en-US", languages=["en"], speakers=None),
        artifact("rms", "rms", languages=["en"], speakers=None),
    ]
    speech = artifact("tiny", "tiny, text to speech", voices=voices, supports_synthesize_streaming=True)
    models = [artifact("tiny", "tiny", languages=["en"])]
    transcription = artifact("tiny", "tiny, speech to text", models=models, supports_transcript_streaming=True)
    others = {"handle": [], "intent": [], "wake": [], "mic": [], "snd": []}
    assert await line.read() == {"type": "info", "asr": [transcription], "tts": [speech]} | others


def test_languages_have_codes() -> None:
    assert language_codes(PLAIN) == ("en", "de")
    unknown = language_codes(dataclasses.replace(PLAIN, languages=()))
    assert len(unknown) == len({*CODES.values()})
    assert {"en", "de", "zh"} <= {*unknown}


def test_voice_has_a_language_if_requests_need_one() -> None:
    voices = offered_voices(REQUIRING, "tiny")
    assert [voice.name for voice in voices] == ["tiny-en", "slt-en", "rms-en", "tiny-de", "slt-de", "rms-de"]
    assert [voice.languages for voice in voices[2:4]] == [("en",), ("de",)]
    for choice, fields in (
        (VoiceChoice(), {"language": "en"}),
        (VoiceChoice(name="rms-de"), {"voice": "rms", "language": "de"}),
        (VoiceChoice(name="alloy"), {"voice": "alloy", "language": "en"}),
        (VoiceChoice(language="de_DE"), {"language": "de"}),
        (VoiceChoice(name="tiny-de", speaker="slt"), {"voice": "slt", "language": "de"}),
    ):
        assert chosen_fields(REQUIRING, voices, choice) == fields


def test_stored_voice_is_offered_in_its_language_if_the_model_has_it() -> None:
    stored = [StoredVoice(language, "mine", "", "yes", 1, language=language) for language in ("de-AT", "German", "xx")]
    offered = {voice.name: voice.languages for voice in offered_voices(PLAIN, "tiny", stored)}
    assert offered | {"de-AT": ("de",), "German": ("de",), "xx": ("en", "de")} == offered
    assert [voice.name for voice in offered_voices(REQUIRING, "tiny", stored[:1])][-1] == "de-AT-de"
    assert "de-AT-en" not in {voice.name for voice in offered_voices(REQUIRING, "tiny", stored)}


def test_language_is_not_sent_to_a_model_without_that_option() -> None:
    profile = dataclasses.replace(PLAIN, options=())
    voices = offered_voices(profile, "tiny")
    assert chosen_fields(profile, voices, VoiceChoice(language="German")) == {}
    with pytest.raises(ApiError, match=r"voice\.language: expected one of en, de, got 'fr'"):
        chosen_fields(profile, voices, VoiceChoice(language="fr"))
