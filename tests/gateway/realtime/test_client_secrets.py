"""Client secrets of the realtime API: scope, settings, expiry and number."""

import re
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits
from stretto_gateway.realtime import client_secrets
from stretto_gateway.realtime.client_secrets import CHAR_BYTES, SECRET_BYTES, ClientSecrets
from stretto_gateway.realtime.settings import RealtimeSettings
from stretto_gateway.realtime.state import RealtimeState
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import TALKS, answer, call_by
from tests.gateway.realtime.test_bounds import KEY, open_socket, status

ENDED = "ek_ended"
SESSION: Any = {"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "nova"}}}
SETTINGS = RealtimeSettings(model="tiny")


async def secret(running: Running, session: Any = SESSION, **options: Any) -> str:
    """Create a client secret and return it."""
    made = await running.openai(api_key=KEY).realtime.client_secrets.create(session=session, **options)
    assert re.fullmatch(r"ek_[A-Za-z0-9_-]{43}", made.value)
    return made.value


@pytest.mark.parametrize("keys", [(KEY,), ()])
async def test_client_secret_sessions_use_its_settings(start: Start, keys: tuple[str, ...]) -> None:
    running = await start(answer(), TALKS, keys=keys)
    value = await secret(running)
    for _ in range(2):
        async with call_by(running.openai(api_key=value), "gpt-realtime") as caller:
            session = caller.seen[0].session
            assert (session.instructions, session.audio.output.voice) == ("Be brief.", "nova")
    protocols = ["realtime", f"openai-insecure-api-key.{value}"]
    async with open_socket(running, subprotocols=protocols) as opened:
        assert '"nova"' in await opened.recv()
        assert opened.subprotocol == "realtime"
    assert await status(running, additional_headers={"authorization": f"Bearer {ENDED}"}) == 401


async def test_client_secret_opens_a_transcription_session(start: Start) -> None:
    running = await start(keys=(KEY,))
    asked: Any = {"type": "transcription", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
    value = await secret(running, asked, expires_after={"anchor": "created_at", "seconds": 10})
    async with call_by(running.openai(api_key=value), "gpt-realtime") as caller:
        assert caller.seen[0].session.type == "transcription"
        assert caller.seen[0].session.audio.input.transcription.model == "gpt-4o-transcribe"


async def test_client_secret_is_valid_only_for_realtime_sessions(start: Start) -> None:
    running = await start(answer(), TALKS, keys=(KEY,))
    bearer = {"authorization": f"Bearer {await secret(running)}"}
    async with running.http() as http:
        for path in ("/v1/models", "/v1/audio/voices", "/metrics", "/v1/realtime"):
            assert (await http.get(path, headers=bearer)).status_code == 401
        for path in ("/v1/audio/speech", "/v1/realtime/client_secrets"):
            assert (await http.post(path, json={"input": "A cat."}, headers=bearer)).status_code == 401
        assert (await http.post("/v1/realtime/client_secrets", json={})).status_code == 401, "nor without a key"
    for path in ("/v1/audio/speech/stream", "/v1/realtime/", "/nowhere"):
        assert await status(running, path, additional_headers=bearer) in (401, 403)


async def test_client_secret_sessions_count_towards_its_key(start: Start) -> None:
    running = await start(answer(), TALKS, keys=(KEY,), limits=Limits(max_sessions=4, drain_s=1))
    value = await secret(running)
    async with call_by(running.openai(api_key=KEY), "gpt-realtime"), call_by(running.openai(api_key=value), "tiny"):
        for key in (KEY, value):
            assert await status(running, additional_headers={"authorization": f"Bearer {key}"}) == 429


async def test_client_secret_expires(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: 100.0, time=lambda: 5000.0)
    monkeypatch.setattr(client_secrets, "time", now)
    running = await start(answer(), TALKS, keys=(KEY,))
    made = await running.openai(api_key=KEY).realtime.client_secrets.create(session=SESSION)
    assert made.expires_at == 5600
    bearer = {"authorization": f"Bearer {made.value}"}
    now.monotonic = lambda: 699.0
    assert await status(running, additional_headers=bearer) == 101
    now.monotonic = lambda: 700.0
    assert await status(running, additional_headers=bearer) == 401
    assert len(running.app.state.gateway.of_route(RealtimeState).secrets) == 0


def test_client_secrets_are_limited_per_owner_and_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: 0.0, time=lambda: 0.0)
    monkeypatch.setattr(client_secrets, "time", now)
    store = ClientSecrets()
    store.add("first", SETTINGS, 10)
    size = store.find(store.add("first", SETTINGS, 10)[0]).num_bytes  # type: ignore[union-attr]
    assert size > SECRET_BYTES
    longer = RealtimeSettings(model="tiny", instructions="a" * 1000)
    assert store.find(store.add("first", longer, 10)[0]).num_bytes >= size + 990 * CHAR_BYTES  # type: ignore[union-attr]
    store = ClientSecrets(max_bytes=8 * size)
    values = [store.add("first", SETTINGS, 10)[0] for _ in range(4)]
    with pytest.raises(ApiError, match="client secrets have not expired"):
        store.add("first", SETTINGS, 10)
    assert store.add("second", SETTINGS, 20)[0] not in values
    assert len(set(values)) == 4
    now.monotonic = lambda: 10.0
    assert [store.find(value) for value in values] == [None] * 4
    assert len(store) == 1
    assert store.add("first", SETTINGS, 10)[0].startswith("ek_")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now"}}, "expires_after.anchor"),
        ({"session": 3}, "session"),
        ({"session": {"type": "other"}}, "session.type"),
        ({"session": {"type": "realtime", "model": "parrot"}}, "session.model"),
        ({"session": {"type": "realtime", "audio": {"output": {"voice": "nobody"}}}}, "session.audio.output.voice"),
    ],
)
async def test_invalid_client_secret_field_is_named(start: Start, body: Any, param: str) -> None:
    running = await start(answer(), TALKS)
    async with running.http() as http:
        refusal = await http.post("/v1/realtime/client_secrets", json=body)
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (404 if "model" in param else 400, param)


async def test_client_secret_response_lists_ignored_settings(start: Start) -> None:
    asked: Any = SESSION | {"tracing": "auto"}
    lenient = (await start(answer(), TALKS)).openai()
    made = await lenient.realtime.client_secrets.create(session=asked, extra_body={"mood": "good"})
    assert made.model_extra == {"stretto_ignored": ["mood", "session.tracing"]}
    strict = (await start(answer(), TALKS, strict=True)).openai()
    with pytest.raises(openai.BadRequestError, match=r"session\.tracing"):
        await strict.realtime.client_secrets.create(session=asked)
