"""`GET /v1/audio/speech/ID`: whether a raw stream was complete."""

import asyncio
from contextlib import suppress

import grpc
import httpx
import pytest

from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits
from stretto_gateway.outcomes import Outcomes
from tests.client.fake_server import Abort, Step, Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start
from tests.gateway.realtime.test_bounds import KEY
from tests.gateway.test_speech import SLOWLY
from tests.patience import until_async

AUTHORIZED = {"authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("end", "status", "num_bytes"),
    [
        ([], "completed", 2 * NUM_SAMPLES),
        ([Abort(grpc.StatusCode.INTERNAL, "out of memory")], "failed", 2 * 3840),
        ([Until(asyncio.Event())], "cancelled", 2 * 3840),
    ],
)
async def test_outcome_tells_a_complete_stream_from_a_broken_one(
    start: Start, end: list[Step], status: str, num_bytes: int
) -> None:
    running = await start([SPOKEN[0], *end, *SPOKEN[1:]], keys=(KEY, f"{KEY}-of-another"))
    async with running.http() as http:
        async with http.stream("POST", "/v1/audio/speech", json=SLOWLY, headers=AUTHORIZED) as answer:
            path = f"/v1/audio/speech/{answer.headers['x-request-id']}"
            parts = answer.aiter_bytes()
            await anext(parts)
            if status != "cancelled":
                with suppress(httpx.RemoteProtocolError):  # the connection of a failed response is closed
                    _ = [part async for part in parts]
        found = running.app.state.gateway.outcomes
        await until_async(lambda: "in_progress" not in str(found._outcomes._records))
        outcome = (await http.get(path, headers=AUTHORIZED)).json()
        assert (outcome["status"], outcome["bytes"], bool(outcome["error"])) == (status, num_bytes, status == "failed")
        assert outcome.get("finish_reason") == ("cancelled" if status == "cancelled" else None)
        assert running.left() == {reason: status == reason for reason in ("failed", "cancelled")}
        other = await http.get(path, headers={"authorization": f"Bearer {KEY}-of-another"})
        assert (other.status_code, other.json()["error"]["param"]) == (404, "id")


async def test_error_of_the_gateway_counts_as_a_failure(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start()
    pieces = iter([b"ab"])

    async def encoded(*_: object) -> bytes:
        piece = next(pieces, None)
        if piece is None:
            raise RuntimeError("the encoder has failed")
        return piece

    monkeypatch.setattr("stretto_gateway.speech.encoded", encoded)
    async with running.http() as http:
        async with http.stream("POST", "/v1/audio/speech", json=SLOWLY) as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                await answer.aread()
        outcome = (await http.get(f"/v1/audio/speech/{answer.headers['x-request-id']}")).json()
    assert (outcome["status"], outcome["error"]) == ("failed", "internal error")
    assert running.left() == {"failed": 1, "cancelled": 0}


async def test_audio_beyond_the_limit_of_a_batch_counts_as_a_failure(start: Start) -> None:
    running = await start(limits=Limits(max_batch_bytes=4000, drain_s=1))
    async with running.http() as http:
        answer = await http.post(
            "/v1/audio/speech/batch", json={"items": [{"input": "A cat."}], "response_format": "pcm"}
        )
    assert answer.json()["failed"] == 1
    assert running.left() == {"failed": 1, "cancelled": 0}


async def test_oldest_outcome_of_the_largest_caller_is_forgotten() -> None:
    async def nothing():  # type: ignore[no-untyped-def]
        yield b""

    outcomes = Outcomes(max_outcomes=3)
    for owner, request_id in (("b", "1"), ("a", "2"), ("a", "3"), ("a", "4"), ("a", "5")):
        _ = [part async for part in outcomes.followed(owner, request_id, nothing(), {})]
    assert outcomes.find("b", "1")["status"] == "completed"
    assert outcomes.find("a", "5")["bytes"] == 0
    for gone in ("2", "3"):
        with pytest.raises(ApiError, match="x-request-id"):
            outcomes.find("a", gone)
