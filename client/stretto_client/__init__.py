"""Speaks to the ensemble over gRPC. It needs tritonclient and numpy, and nothing of the server's code.

async with SpeechClient("localhost:8001") as client:
    async for event in client.speak("It is 9:20."):
        play(event.pcm, event.sample_rate)
"""

from stretto_client.client import SpeechClient, SpeechStream
from stretto_client.errors import (
    ClientError,
    RequestCancelled,
    RequestRefused,
    ServerFailed,
    ServerUnavailable,
    TimedOut,
)
from stretto_client.event import GuidanceChange, SpeechEvent, Word
from stretto_client.ring import RingSize
from stretto_client.timeouts import Timeouts

__all__ = [
    "ClientError",
    "GuidanceChange",
    "RequestCancelled",
    "RequestRefused",
    "RingSize",
    "ServerFailed",
    "ServerUnavailable",
    "SpeechClient",
    "SpeechEvent",
    "SpeechStream",
    "TimedOut",
    "Timeouts",
    "Word",
]
