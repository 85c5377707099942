"""The clauses of a long text continue the speech before them if a request has this option and the model can."""

from typing import Any

import pytest

from tests.client.fake_server import PROFILE, Chunk
from tests.gateway.conftest import Start

BODY = {"model": "tts-1", "input": "These words are said one by one. " * 8, "response_format": "pcm"}
PATH = "/v1/audio/speech"
RECORDED = {"ref_audio": "data:audio/wav;base64,UklGRg=="}


def profile_with(continues: str) -> dict[str, Any]:
    """Return the profile of a model that continues speech and speaks in recorded voices."""
    task = {"name": "tts", "needs": ["text"], "speaks": True, "system": ["audio"], "continues": continues}
    return PROFILE | {"tasks": [task]}


CONTINUES = profile_with("turns")
AS_VOICE = profile_with("voice")


def speech() -> list[Chunk]:
    return [Chunk(0, is_16_bit=True, codes=[[1]], is_final=True, is_last=True)]


@pytest.mark.parametrize(
    ("profile", "change", "ignored"),
    [
        (CONTINUES, {}, None),
        (CONTINUES, RECORDED, None),
        (AS_VOICE, {}, None),
        (AS_VOICE, RECORDED, "join"),
        (PROFILE, {}, "join"),
    ],
    ids=["turns", "turns in a voice", "as a voice", "as a voice in a voice", "cannot"],
)
async def test_clauses_continue_speech_if_the_model_can(
    start: Start, profile: dict[str, Any], change: dict[str, str], ignored: str | None
) -> None:
    running = await start(speech(), profile=profile)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | change | {"join": "continued", "check": "off"})
    assert answer.status_code == 200
    assert answer.headers.get("stretto-ignored") == ignored
    requests = running.behind.requests
    assert [b"codes" in request.get("messages", b"") for request in requests] == [False, ignored is None]


@pytest.mark.parametrize(
    ("profile", "change", "message"),
    [
        (PROFILE, {"join": "smooth"}, "join: "),
        (PROFILE, {}, "join: expected independent ('tiny' cannot continue speech), "),
        (AS_VOICE, RECORDED, "join: expected independent ('tiny' cannot continue speech in a requested voice), "),
    ],
    ids=["unknown", "cannot", "in a voice"],
)
async def test_unknown_joins_and_joins_that_a_strict_gateway_cannot_make_are_refused(
    start: Start, profile: dict[str, Any], change: dict[str, str], message: str
) -> None:
    running = await start(speech(), profile=profile, strict=True)
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | {"join": "continued"} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "join")
    assert error["message"].startswith(message), error["message"]
