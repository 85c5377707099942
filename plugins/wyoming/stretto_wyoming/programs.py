"""Programs, voices and languages that the gateway offers to Wyoming's clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from stretto_client import ModelProfile
from stretto_contract.languages import CODES, code_name
from stretto_contract.voice_details import UNKNOWN_VOICE, VoiceDetails
from stretto_gateway.answers import refused
from stretto_gateway.catalogue import clones, speaks, transcribes
from stretto_gateway.gateway import Gateway
from stretto_gateway.model_server import ModelServer
from stretto_gateway.turns import FILES
from stretto_gateway.voice_store import EVERYBODY, StoredVoice
from stretto_wyoming.fields import VoiceChoice

CODE_OF = {name: code for code, name in reversed(CODES.items())}  # first code of each language


@dataclass(frozen=True, slots=True)
class OfferedVoice:
    """Voice in a list of voices.

    Attributes:
        name: Name that a client sends to choose the voice.
        title: Name that people read.
        fields: Fields of a speech request that select the voice, and the language if the model requires one.
        speakers: Further names of the model's voices. A client may send one of them with the name.
    """

    name: str
    title: str
    languages: tuple[str, ...]
    fields: dict[str, str]
    speakers: tuple[str, ...] = ()


def language_codes(profile: ModelProfile) -> tuple[str, ...]:
    """Return the codes of a model's languages, or of all known languages if none of them has a code.

    Home Assistant offers only programs with a language.
    """
    names = map(code_name, profile.languages)
    return tuple(dict.fromkeys(CODE_OF[name] for name in names if name in CODE_OF)) or tuple(CODE_OF.values())


def offered_voices(profile: ModelProfile, model: str, stored: Sequence[StoredVoice] = ()) -> list[OfferedVoice]:
    """Return the voices of a model: its default one, those with names, and those that callers have added.

    If requests have to specify a language, which Home Assistant does not send, there is one voice for each language.
    """
    codes = language_codes(profile)
    voices = [OfferedVoice(model, f"{model}, default voice", codes, {}, profile.voices)]
    for name in profile.voices:
        title = _title(name, profile.voice_details.get(name, UNKNOWN_VOICE))
        voices.append(OfferedVoice(name, title, codes, {"voice": name}))
    for voice in stored:
        spoken = tuple(code for code in codes if code == CODE_OF.get(code_name(voice.language)))
        voices.append(OfferedVoice(voice.id, _title(voice.name, voice), spoken or codes, {"voice": voice.id}))
    if not profile.requires_language:
        return voices
    return [_in_language(voice, code) for code in codes for voice in voices if code in voice.languages]


def _title(name: str, details: VoiceDetails | StoredVoice) -> str:
    return ", ".join(filter(None, (name, details.gender, details.language, details.description)))


def _in_language(voice: OfferedVoice, code: str) -> OfferedVoice:
    fields = voice.fields | {"language": code}
    return OfferedVoice(f"{voice.name}-{code}", f"{voice.title} ({code})", (code,), fields, voice.speakers)


def chosen_fields(profile: ModelProfile, voices: Sequence[OfferedVoice], choice: VoiceChoice) -> dict[str, str]:
    """Return a speech request's fields for the client's choice; raise ApiError if the model lacks its language.

    A name that is not in the list is passed to the gateway, which knows further names.
    """
    wanted = choice.language and CODE_OF.get(code_name(choice.language), choice.language)
    speaking = [voice for voice in voices if not wanted or wanted in voice.languages]
    if not speaking:
        raise refused("voice.language", f"one of {', '.join(language_codes(profile))}", choice.language)
    named = next((voice.fields for voice in voices if voice.name == choice.name), None)
    fields = dict(speaking[0].fields)
    if wanted and "language" in profile.options:
        fields["language"] = wanted
    if named is not None:
        fields |= named
    elif choice.name:
        fields["voice"] = choice.name
    return fields | ({"voice": choice.speaker} if choice.speaker else {})


async def stored_voices(gateway: Gateway, profile: ModelProfile) -> list[StoredVoice]:
    """Return the voices that callers without a key have added, if the model can speak with them."""
    task = profile.task("tts")
    if gateway.voices is None or task is None or not clones(task):
        return []
    return await FILES.run(gateway.voices.all, EVERYBODY)


async def describe(gateway: Gateway) -> dict[str, Any]:
    """Return the fields of `info`, a program per model that speaks or transcribes; raise ApiError without a server."""
    speaking = list[dict[str, Any]]()
    transcribing = list[dict[str, Any]]()
    for server in await gateway.servers.up():
        profile = await server.catalogue.profile()
        if speaks(profile):
            speaking.append(await _speech_program(gateway, server, profile))
        if transcribes(profile):
            transcribing.append(_transcription_program(server, profile))
    none: dict[str, Any] = {domain: [] for domain in ("handle", "intent", "wake", "mic", "snd")}
    return {"asr": transcribing, "tts": speaking} | none


async def _speech_program(gateway: Gateway, server: ModelServer, profile: ModelProfile) -> dict[str, Any]:
    model = server.catalogue.name_of(profile)
    voices = [
        _artifact(voice.name, voice.title)
        | {"languages": voice.languages, "speakers": [{"name": name} for name in voice.speakers] or None}
        for voice in offered_voices(profile, model, await stored_voices(gateway, profile))
    ]
    return _artifact(model, f"{model}, text to speech") | {"voices": voices, "supports_synthesize_streaming": True}


def _transcription_program(server: ModelServer, profile: ModelProfile) -> dict[str, Any]:
    model = server.catalogue.name_of(profile)
    models = [_artifact(model, model) | {"languages": language_codes(profile)}]
    return _artifact(model, f"{model}, speech to text") | {"models": models, "supports_transcript_streaming": True}


def _artifact(name: str, description: str) -> dict[str, Any]:
    attribution = {"name": "Stretto", "url": ""}
    about = {"description": description, "attribution": attribution}
    return {"name": name, "installed": True, "version": version("stretto")} | about
