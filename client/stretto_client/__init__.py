"""Python client of the speech ensemble over gRPC.

It needs tritonclient, numpy, sentencex and markdown-it-py, and none of the server's code.

async with SpeechClient("localhost:8001") as client:
    async for event in client.speak("It is 9:20."):
        play(event.pcm, event.sample_rate)
"""

from stretto_client.client import SpeechClient
from stretto_client.errors import (
    ClientError,
    RequestCancelled,
    RequestRefused,
    ServerFailed,
    ServerFull,
    ServerUnavailable,
    TimedOut,
)
from stretto_client.event import GuidanceChange, SpeechEvent, Word
from stretto_client.long_speech import LongSpeech, Speech
from stretto_client.model_profile import FAMILY_OPTIONS, ModelProfile, TaskProfile
from stretto_client.recorded_voice import RecordedVoice
from stretto_client.ring import RingSize
from stretto_client.speech_stream import SpeechStream
from stretto_client.timeouts import Timeouts

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
