"""Python client of the speech ensemble over gRPC.

It needs tritonclient, numpy, sentencex and markdown-it-py, and none of the server's code.

async with SpeechClient("localhost:8001") as client:
    async for event in client.speak("It is 9:20."):
        play(event.pcm, event.sample_rate)
"""

from stretto_client.client import SpeechClient
from stretto_client.conversation import RecordedVoice
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
from stretto_client.speech_stream import GuidanceChange, SpeechEvent, SpeechStream, Word

__all__ = [
    "FAMILY_OPTIONS",
    "ClientError",
    "GuidanceChange",
    "LongSpeech",
    "ModelProfile",
    "RecordedVoice",
    "RequestCancelled",
    "RequestRefused",
    "RingSize",
    "ServerFailed",
    "ServerFull",
    "ServerUnavailable",
    "Speech",
    "SpeechClient",
    "SpeechEvent",
    "SpeechStream",
    "TaskProfile",
    "TimedOut",
    "Timeouts",
    "Word",
]
