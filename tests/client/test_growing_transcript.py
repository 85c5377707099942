"""Live transcripts of a model that reads whole recordings, by requests that continue each other."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from stretto_client import RequestRefused, ServerFull, SpeechClient, SpeechEvent, TimedOut
from stretto_client.growing_transcript import sixteen_bit
from tests.client.fake_server import PROFILE, Chunk, ErrorText, FakeServer, Pause, Request, Step
from tests.patience import PATIENCE_S

ASR = {"name": "asr", "needs": ["audio"], "system": ["text"]}
GROWING = PROFILE | {"tasks": [ASR], "options": ["beginning"]}
RATE = 8_000
WORDS = "one two three four five six seven eight nine ten"
FULL = ErrorText("full: 80 sequences are already in flight; try again")


class Recogniser:
    """Server whose transcript has a word for each second, the last of which is open."""

    def __init__(self) -> None:
        self.requests = list[tuple[int, dict[str, Any]]]()  # number of samples, and options
        self.instead: dict[int, Step] = {}  # answers by number of the request
        self.server = FakeServer(self._script, profile=GROWING)

    def _script(self, request: Request) -> list[Step]:
        options = json.loads(request["options"])
        number = len(self.requests)
        self.requests.append((np.size(request["pcm_in"]), options))
        if number in self.instead:
            return [self.instead.pop(number)]
        assert (np.atleast_1d(request["pcm_in"]) == 0.5).all()
        text = " ".join(WORDS.split()[: np.size(request["pcm_in"]) // RATE])
        kept = text.rpartition(" ")[0]
        continuation = {"beginning": f"begun: {kept}", "num_chars": len(kept)}
        report = {"finish_reason": "stop", "continuation": continuation}
        half = len(text) // 2
        last = Chunk(1, None, text[half:], is_final=True, is_last=True, more={"report": report})
        return [Chunk(0, None, text[:half]), last]


async def halves(seconds: float, size: int = 1000) -> AsyncIterator[np.ndarray]:
    whole = np.full(round(seconds * RATE), 0.5)
    for start in range(0, len(whole), size):
        await asyncio.sleep(0)
        yield whole[start : start + size]


async def transcribed(recogniser: Recogniser, pieces: AsyncIterator[np.ndarray], **options: Any) -> list[SpeechEvent]:
    async with SpeechClient(await recogniser.server.start()) as client:
        try:
            return [event async for event in client.transcribe_live(pieces, RATE, **options)]
        finally:
            await recogniser.server.stop()


def texts(events: list[SpeechEvent]) -> list[str]:
    return [event.text for event in events if event.text]


@pytest.mark.parametrize("size", [77, 1000, 100_000])
async def test_requests_depend_on_the_audio_only(size: int) -> None:
    """All audio is transcribed anew every 2 s; from the third request on, the transcript so far is continued."""
    recogniser = Recogniser()
    events = await transcribed(recogniser, halves(7.5, size), seed=7, progress=True)
    assert [num_samples / RATE for num_samples, _ in recogniser.requests] == [2, 4, 6, 7.5]
    beginnings = ["", "", "begun: one two three", "begun: one two three four five"]
    assert [options for _, options in recogniser.requests] == [{"seed": 7, "beginning": text} for text in beginnings]
    written = texts(events)
    assert written[:2] == ["one two three", " four five"]
    assert "".join(written) == "one two three four five six seven"
    assert [event.transcribed_s for event in events[1:3]] == [4.0, 6.0]
    assert [event.index for event in events] == list(range(len(events)))
    assert events[0].session
    assert [event.is_final for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].report is not None


async def test_audio_that_ends_with_a_step_is_not_transcribed_twice() -> None:
    recogniser = Recogniser()
    events = await transcribed(recogniser, halves(4.0))
    assert [num_samples / RATE for num_samples, _ in recogniser.requests] == [2, 4]
    assert "".join(texts(events)) == "one two three four"


async def test_short_turn_is_one_request_with_its_system_turn() -> None:
    recogniser = Recogniser()
    events = await transcribed(recogniser, halves(1.5), system="Spree")
    assert recogniser.requests == [(12_000, {"beginning": ""})]
    turns = json.loads(recogniser.server.requests[0]["messages"])
    assert turns == [{"role": "system", "text": "Spree"}, {"role": "user", "audio": "pcm_in"}]
    assert texts(events) == ["o", "ne"]


async def test_words_arrive_while_the_audio_waits() -> None:
    """The transcript of 4 s arrives although the fifth second never does."""
    recogniser = Recogniser()

    async def unfinished() -> AsyncIterator[np.ndarray]:
        async for piece in halves(4.0):
            yield piece
        await asyncio.Event().wait()

    async with SpeechClient(await recogniser.server.start()) as client, asyncio.timeout(PATIENCE_S):
        speech = client.transcribe_live(unfinished(), RATE)
        assert [(await anext(speech)).text for _ in range(2)] == ["", "one two three"]
        await speech.aclose()
    await recogniser.server.stop()


async def test_full_server_gets_a_later_request_again() -> None:
    recogniser = Recogniser()
    recogniser.instead[1] = FULL
    events = await transcribed(recogniser, halves(4.5))
    assert [num_samples / RATE for num_samples, _ in recogniser.requests] == [2, 4, 4, 4.5]
    assert "".join(texts(events)) == "one two three four"


async def test_full_server_refuses_the_first_request() -> None:
    recogniser = Recogniser()
    recogniser.instead[0] = FULL
    with pytest.raises(ServerFull, match="80 sequences"):
        await transcribed(recogniser, halves(4.5))


async def test_failure_loses_no_text() -> None:
    """If the recording becomes too long, the transcript so far is complete before the server's message is raised."""
    recogniser = Recogniser()
    recogniser.instead[2] = ErrorText("invalid request: pcm_in: expected at most 4 s, got 6.00 s")
    async with SpeechClient(await recogniser.server.start()) as client:
        speech = client.transcribe_live(halves(9), RATE)
        written = [(await anext(speech)).text for _ in range(3)]
        with pytest.raises(RequestRefused, match="at most 4 s"):
            await anext(speech)
    await recogniser.server.stop()
    assert "".join(written) == "one two three four"


async def test_session_has_a_time_limit() -> None:
    recogniser = Recogniser()
    recogniser.instead[0] = Pause(PATIENCE_S)
    with pytest.raises(TimedOut, match=r"was not complete after 0\.2 s"):
        await transcribed(recogniser, halves(3), total_s=0.2)


def test_kept_samples_have_16_bits() -> None:
    samples = np.array([0.5, 1 / 32_768, -1.0, 1.0, -7.0], np.float32)
    assert sixteen_bit(samples).tolist() == [16_384, 1, -32_768, 32_767, -32_768]
    whole = np.arange(-32_768, 32_768, dtype=np.int16)
    np.testing.assert_array_equal(sixteen_bit((whole / 32_768).astype(np.float32)), whole)
    for value in (np.nan, np.inf):
        with pytest.raises(RequestRefused, match="pcm_in: expected finite samples"):
            sixteen_bit(np.array([0.0, value], np.float32))
