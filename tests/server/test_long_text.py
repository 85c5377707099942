"""A text that is longer than the model accepts becomes a single utterance."""

import itertools

import numpy as np
import pytest

from stretto_client import SpeechClient, SpeechEvent
from stretto_client.joint import FADE_S
from stretto_client.long_speech import split
from tests.server.conftest import Server

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day tests/client/test_long_speech.py
TEXT = (
    "The birch canoe slid on the smooth planks. It is easy to tell the depth of a well. Rice is often served in round "
    "bowls, and the juice of lemons makes fine punch. The box was thrown beside the parked truck; the hogs were fed "
    "chopped corn and garbage. Four hours of steady work faced us. A large size in stockings is hard to sell. "
    "It was 9:20."
)
OPTIONS = {"seed": 3, "voice": "heart", "chunking": {"deterministic": True}}


async def spoken(client: SpeechClient, text: str) -> list[SpeechEvent]:
    return [event async for event in client.speak(text, **OPTIONS)]


def samples(events: list[SpeechEvent]) -> np.ndarray:
    return np.concatenate([event.pcm for event in events if event.pcm is not None])


async def test_long_text_audio_joins_clauses_without_gaps_or_clicks(server: Server) -> None:
    async with SpeechClient(f"localhost:{server.grpc}") as client:
        whole = await spoken(client, TEXT)
        pieces = split(TEXT, (await client.profile()).max_text_chars)
        clauses = [await spoken(client, piece) for piece in pieces]
    assert len(pieces) > 1
    pcm, alone = samples(whole), [samples(events) for events in clauses]
    assert len(pcm) == sum(map(len, alone)), "no sample between clauses that the voice has not made"
    differs, num_fade = pcm != np.concatenate(alone), round(FADE_S * 24_000)
    steps = np.abs(np.diff(pcm))
    for begin in itertools.accumulate(map(len, alone[:-1])):
        differs[begin : begin + num_fade] = False
        assert steps[begin - 1 : begin + num_fade].max() <= np.quantile(steps, 0.99), "a click where clauses meet"
    assert not differs.any()
    words = [word for event in whole for word in event.words]
    assert [word.start_s for word in words] == sorted(word.start_s for word in words)
    assert [word.word for word in words] == [word.word for events in clauses for each in events for word in each.words]
    assert [event.is_final for event in whole] == [False] * (len(whole) - 1) + [True]
    assert whole[-1].report is not None
    assert whole[-1].report["audio_s"] == pytest.approx(len(pcm) / 24_000)
