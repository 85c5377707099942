"""Python client for a Stretto server, over gRPC.

It depends on tritonclient, numpy, typing_extensions, sentencex and markdown-it-py, but not on the server's code.

async with SpeechClient("localhost:8001") as client:
    async for event in client.speak("It is 9:20."):
        play(event.pcm, event.sample_rate)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto_client.client import SpeechClient
    from stretto_client.errors import (
        ClientError,
        RequestCancelled,
        RequestRefused,
        ServerFailed,
        ServerFull,
        ServerUnavailable,
        TimedOut,
        Timeouts,
    )
    from stretto_client.long_speech import LongSpeech, Speech
    from stretto_client.model_profile import FAMILY_OPTIONS, ModelProfile, TaskProfile
    from stretto_client.shared_memory import RingSize
    from stretto_client.speech_stream import (
        GuidanceChange,
        SpeakArguments,
        SpeakOptions,
        SpeechEvent,
        SpeechStream,
        TaskOptions,
        TranscriptionOptions,
        Word,
    )
    from stretto_client.voices import RecordedVoice
    from stretto_contract.schema import OptionsRecord, SpeechOptions
    from stretto_contract.transcripts import Passage

__all__ = [
    "FAMILY_OPTIONS",
    "ClientError",
    "GuidanceChange",
    "LongSpeech",
    "ModelProfile",
    "OptionsRecord",
    "Passage",
    "RecordedVoice",
    "RequestCancelled",
    "RequestRefused",
    "RingSize",
    "ServerFailed",
    "ServerFull",
    "ServerUnavailable",
    "SpeakArguments",
    "SpeakOptions",
    "Speech",
    "SpeechClient",
    "SpeechEvent",
    "SpeechOptions",
    "SpeechStream",
    "TaskOptions",
    "TaskProfile",
    "TimedOut",
    "Timeouts",
    "TranscriptionOptions",
    "Word",
]
MODULES = {
    "stretto_client.client": "SpeechClient",
    "stretto_client.errors": "ClientError RequestCancelled RequestRefused ServerFailed ServerFull ServerUnavailable"
    " TimedOut Timeouts",
    "stretto_client.long_speech": "LongSpeech Speech",
    "stretto_client.model_profile": "FAMILY_OPTIONS ModelProfile TaskProfile",
    "stretto_contract.schema": "OptionsRecord SpeechOptions",
    "stretto_client.shared_memory": "RingSize",
    "stretto_contract.transcripts": "Passage",
    "stretto_client.speech_stream": "GuidanceChange SpeakArguments SpeakOptions SpeechEvent SpeechStream"
    " TaskOptions TranscriptionOptions Word",
    "stretto_client.voices": "RecordedVoice",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because commands that only read their arguments must not load gRPC."""
    for module, names in MODULES.items():
        if name in names.split():
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'stretto_client' has no attribute {name!r}")
