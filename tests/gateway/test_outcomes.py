"""`GET /v1/audio/speech/ID`: whether a raw stream was complete."""

import asyncio
from contextlib import suppress

import grpc
import httpx
import pytest

from stretto_gateway.answers import ApiError
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
        await until_async(lambda: "in_progress" not in str(found._outcomes))
        outcome = (await http.get(path, headers=AUTHORIZED)).json()
        assert (outcome["status"], outcome["bytes"], bool(outcome["error"])) == (status, num_bytes, status == "failed")
        assert outcome.get("finish_reason") == ("cancelled" if status == "cancelled" else None)
        registry = running.app.state.gateway.metrics.registry
        for reason in ("failed", "cancelled"):
            labels = {"family": "tiny", "task": "tts", "reason": reason}
            assert registry.get_sample_value("audio_left_total", labels) == (status == reason)
        other = await http.get(path, headers={"authorization": f"Bearer {KEY}-of-another"})
        assert (other.status_code, other.json()["error"]["param"]) == (404, "id")


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
