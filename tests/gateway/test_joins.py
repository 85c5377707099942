"""The clauses of a long text continue the speech before them if a request has this option and the model can."""

from typing import Any

import pytest

from tests.client.fake_server import PROFILE, Chunk
from tests.gateway.conftest import Start

BODY = {"model": "tts-1", "input": "These words are said one by one. " * 8, "response_format": "pcm"}
PATH = "/v1/audio/speech"
CONTINUES = PROFILE | {"tasks": [{"name": "tts", "needs": ["text"], "speaks": True, "continues": "turns"}]}


def speech() -> list[Chunk]:
    return [Chunk(0, is_16_bit=True, codes=[[1]], is_final=True, is_last=True)]


@pytest.mark.parametrize(("profile", "ignored"), [(CONTINUES, None), (PROFILE, "join")], ids=["continues", "cannot"])
async def test_clauses_continue_speech_if_the_model_can(
    start: Start, profile: dict[str, Any], ignored: str | None
) -> None:
    running = await start(speech(), profile=profile)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | {"join": "continued", "check": "off"})
    assert answer.status_code == 200
    assert answer.headers.get("stretto-ignored") == ignored
    requests = running.behind.requests
    assert ["messages" in request for request in requests] == [False, *[ignored is None] * (len(requests) - 1)]
    assert len(requests) == 2


async def test_unknown_joins_and_joins_that_a_strict_gateway_cannot_make_are_refused(start: Start) -> None:
    for value, message in (("smooth", "join: "), ("continued", "join: expected independent ('tiny' cannot continue")):
        running = await start(speech(), strict=True)
        async with running.http() as http:
            answer = await http.post(PATH, json=BODY | {"join": value})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "join")
        assert error["message"].startswith(message), error["message"]
