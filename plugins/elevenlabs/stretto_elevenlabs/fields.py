"""Fields of ElevenLabs' requests, and their conversion to fields of the gateway's speech requests."""

import re
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from stretto_client import ModelProfile, SpeakArguments
from stretto_contract.languages import code_name
from stretto_gateway.answers import ApiError, refused
from stretto_gateway.catalogue import CallersVoices, speaks
from stretto_gateway.fields import Body, Ignored, Text, validated
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech import wants_alignment
from stretto_gateway.speech_request import SpeechItem

USUAL_FORMAT = "mp3_44100_128"
RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
OUTPUT_FORMATS = (
    *("mp3_22050_32", "mp3_24000_48", "mp3_44100"),
    *(f"mp3_44100_{kbps}" for kbps in (32, 64, 96, 128, 192)),
    *(f"opus_48000_{kbps}" for kbps in (32, 64, 96, 128, 192)),
    *(f"{name}_{rate}" for name in ("pcm", "wav") for rate in RATES),
    *("ulaw_8000", "alaw_8000"),
)
FORMATS = {"ulaw": "mulaw"}  # formats with another name in the gateway
FOREIGN_VOICE = re.compile(r"[A-Za-z0-9]{20}")  # id of one of ElevenLabs' own voices
Seed = Annotated[int | None, Field(ge=0, le=4_294_967_295)]


class VoiceSettings(Body):
    """Settings of the voice, of which only the speed has an effect."""

    speed: float | None = None


class DictionaryLocators(Body):
    """Base class of requests that may name pronunciation dictionaries."""

    pronunciation_dictionary_locators: list[Any] | None = Field(
        default=None, description="must be empty; the entries of /v1/audio/pronunciations apply to every request"
    )

    def refuse_dictionaries(self) -> None:
        """Raise ApiError if the request names dictionaries of ElevenLabs, which this gateway does not have."""
        if self.pronunciation_dictionary_locators:
            expected = "no entries (add the words to /v1/audio/pronunciations instead)"
            raise refused("pronunciation_dictionary_locators", expected, self.pronunciation_dictionary_locators)


class SpeechBody(DictionaryLocators):
    """Body of a text-to-speech request. Fields without effect are listed in the header `stretto-ignored`."""

    text: Text
    model_id: Text = Field(default="", description="a name of `/v1/models`; any other name selects the default")
    language_code: Text | None = None
    voice_settings: VoiceSettings | None = None
    seed: Seed = None


class ElevenLabsItem(SpeechItem):
    """Text to speak, in one of ElevenLabs' formats."""

    _bit_rate: int | None = PrivateAttr(default=None)

    @property
    def bit_rate(self) -> int | None:
        return self._bit_rate


async def speaking(gateway: Gateway, model_id: str) -> Gateway:
    """Return the gateway for the server that `model_id` selects, or else for the first server that speaks."""
    try:
        return await gateway.for_model(model_id, speaks)
    except ApiError as error:
        if error.status != 404:
            raise
        return await gateway.for_model("", speaks)


async def speech_item(
    gateway: Gateway, owner: str, voice_id: str, output_format: str, fields: dict[str, Any], ignored: Ignored
) -> ElevenLabsItem:
    """Return a speech request with further `fields`, under the gateway's names; raise ApiError if a value is invalid.

    Fields without effect are added to `ignored`.
    """
    if output_format not in OUTPUT_FORMATS:
        raise refused("output_format", f"one of {', '.join(OUTPUT_FORMATS)}", output_format)
    name, rate, *bit_rate = output_format.split("_")
    profile = await gateway.catalogue.profile()
    fields |= {"response_format": FORMATS.get(name, name), "sample_rate": int(rate)}
    fields["voice"] = await known_voice(profile, CallersVoices(gateway.voices, owner), voice_id, ignored)
    language = fields.get("language")
    if language is not None and profile.languages and code_name(language) not in profile.languages:
        ignored.add("language_code", f"a code of {', '.join(profile.languages)}", fields.pop("language"))
    item = validated(ElevenLabsItem, fields)
    if bit_rate:
        item._bit_rate = 1000 * int(bit_rate[0])
    return item


async def known_voice(profile: ModelProfile, voices: CallersVoices, voice_id: str, ignored: Ignored) -> str | None:
    """Return a voice's id or name. One of ElevenLabs' own becomes None, the default voice."""
    if not FOREIGN_VOICE.fullmatch(voice_id) or voice_id in profile.voices:
        return voice_id
    if await voices.own(profile, voice_id) is not None:
        return voice_id
    ignored.add("voice_id", "a voice of /v1/voices", voice_id)
    return None


async def ask_for_words(gateway: Gateway, options: SpeakArguments) -> bool:
    """Ask for the times of words, and return True if there will be any."""
    profile = await gateway.catalogue.profile()
    if wants_alignment(profile):
        options["words"] = "aligned"
    return profile.times_words or "words" in options
