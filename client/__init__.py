"""Speaks to the ensemble over gRPC. It needs tritonclient and numpy, and nothing of the server's code.

async with SpeechClient("localhost:8001") as client:
    async for event in client.speak("It is 9:20."):
        play(event.pcm, event.sample_rate)
"""

from client.client import SpeechClient, SpeechStream
from client.errors import ClientError, RequestCancelled, RequestRefused, ServerFailed, ServerUnavailable, TimedOut
from client.event import GuidanceChange, SpeechEvent, Word
from client.ring import RingSize
from client.timeouts import Timeouts

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
