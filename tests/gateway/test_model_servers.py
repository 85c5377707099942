"""One gateway for several servers, which requests select by the name of a model."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock, Mock

import openai
import pytest

from stretto_gateway import model_server
from stretto_gateway.command import arguments, read_config
from stretto_gateway.config import GatewayConfig, Limits
from tests.client.fake_server import PROFILE, FakeServer, Until
from tests.gateway.conftest import HEARD, SPOKEN, Running, Start
from tests.gateway.realtime.caller import SAMPLES, TALKS, answer, call, spoken
from tests.gateway.realtime.test_bounds import open_socket
from tests.gateway.realtime.test_duplex import DUPLEX
from tests.patience import PATIENCE_S, until_async

TTS, ASR = ({**PROFILE, "tasks": [task]} for task in PROFILE["tasks"])
VOICES = TTS | {"family": "piper", "voices": ["amy", "joe"]}
STREAMS = ASR | {"family": "scribe", "reads_live_audio": True}
RECORDING = (SAMPLES / "train_slt.ogg").read_bytes()
KINDS = {
    "piper-en": (VOICES, SPOKEN),
    "scribe": (STREAMS, HEARD),
    "talker": (TALKS | {"tasks": TALKS["tasks"][2:]}, answer()),
    "duplex": (DUPLEX, SPOKEN),
    "second-voice": (TTS | {"family": "other"}, SPOKEN),
}


@dataclass
class Several:
    """A gateway and its servers by name."""

    running: Running
    servers: dict[str, FakeServer]

    def asked(self) -> dict[str, int]:
        """Return the number of requests that each server has received, without those that received none."""
        return {name: len(server.requests) for name, server in self.servers.items() if server.requests}

    async def show(self, name: str, is_up: bool) -> None:
        """Let a server end or come back, and wait until the gateway has noticed."""
        self.servers[name].is_ready = is_up
        found = next(each for each in self.running.app.state.gateway.servers.all if each.name == name)
        await until_async(lambda: found.is_up == is_up)


Begin = Callable[..., Awaitable[Several]]


@pytest.fixture
async def several(start: Start, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Begin]:
    """Start a gateway for the named servers, in this order; both end with the test."""
    monkeypatch.setattr(model_server, "CHECK_S", 0.05)
    made: dict[str, FakeServer] = {}

    async def begin(*names: str, script: Any = None, **settings: Any) -> Several:
        addresses = {}
        for name in names or KINDS:
            profile, steps = KINDS[name]
            made[name] = FakeServer(lambda _, steps=script or steps: steps)
            made[name].profile = profile
            addresses[name] = await made[name].start()
        running = await start(named_servers=addresses, **settings)
        await asyncio.gather(*(each.checked() for each in running.app.state.gateway.servers.all))
        return Several(running, made)

    yield begin
    for server in made.values():
        await server.stop()


async def test_models_of_all_servers_are_listed(several: Begin) -> None:
    gateway = await several()
    client = gateway.running.openai()
    assert [model.id async for model in client.models.list()] == [*KINDS]
    assert (await client.models.retrieve("piper-en")).id == "piper-en"
    assert (await client.models.retrieve("piper")).id == "piper-en", "by the name of its family"
    async with gateway.running.http() as http:
        assert [each["id"] for each in (await http.get("/v1/audio/models")).json()["models"]] == [*KINDS]
        voices = {name: (await http.get("/v1/audio/voices", params={"model": name})).json() for name in ("", "other")}
        preview = await http.get(voices["other"]["voices"][0]["preview"])
    assert (voices[""]["names"], voices["other"]["names"]) == (["amy", "joe"], ["slt", "rms"])
    assert preview.status_code == 200
    assert gateway.asked() == {"second-voice": 1}


@pytest.mark.parametrize(
    ("model", "server"),
    [
        ("piper-en", "piper-en"),
        ("piper", "piper-en"),
        ("second-voice", "second-voice"),
        ("mine", "second-voice"),
        ("tts-1", "piper-en"),
        ("gpt-4o-mini-tts", "piper-en"),
    ],
)
async def test_model_field_selects_the_server_of_speech(several: Begin, model: str, server: str) -> None:
    gateway = await several(model_aliases={"mine": "second-voice"})
    async with gateway.running.http() as http:
        body = {"input": "A cat.", "model": model, "response_format": "pcm", "check": "off"}
        assert (await http.post("/v1/audio/speech", json=body)).status_code == 200
        assert (await http.post("/v1/audio/speech/batch", json={"items": [body]})).json()["succeeded"] == 1
    assert gateway.asked() == {server: 2}


async def test_openai_names_select_by_ability(several: Begin) -> None:
    gateway = await several("piper-en", "scribe", "talker")
    client = gateway.running.openai()
    text = await client.audio.transcriptions.create(model="whisper-1", file=("a.ogg", io.BytesIO(RECORDING)))
    assert (text.text, gateway.asked()) == ("a cat", {"scribe": 1})
    reply = await client.chat.completions.create(model="gpt-audio", messages=[{"role": "user", "content": "Well?"}])
    assert (reply.model, gateway.asked()) == ("talker", {"scribe": 1, "talker": 1})
    metrics = await gateway.running.http().get("/metrics")
    assert 'text_seconds_count{family="scribe",task="asr"} 1.0' in metrics.text


async def test_item_of_a_batch_selects_its_own_server(several: Begin) -> None:
    gateway = await several()
    items = [{"input": "A cat."}, {"input": "A dog.", "model": "second-voice"}, {"input": "A cow.", "model": "none"}]
    async with gateway.running.http() as http:
        body = {"items": items, "check": "off"}
        found = (await http.post("/v1/audio/speech/batch", json=body)).json()["results"]
    assert [each["status"] for each in found] == ["success", "success", "error"]
    assert gateway.asked() == {"piper-en": 1, "second-voice": 1}


@pytest.mark.parametrize("model", ["none", "parrot " * 20])
async def test_unknown_name_is_refused_with_the_list(several: Begin, model: str) -> None:
    gateway = await several()
    async with gateway.running.http() as http:
        response = await http.post("/v1/audio/speech", json={"input": "A cat.", "model": model})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "expected one of 'piper-en', 'scribe', 'talker', 'duplex', 'second-voice', got" in error["message"]


async def test_named_model_that_cannot_do_the_request_refuses_it(several: Begin) -> None:
    gateway = await several("piper-en", "scribe")
    async with gateway.running.http() as http:
        body = {"input": "A cat.", "model": "scribe"}
        named = (await http.post("/v1/audio/speech", json=body)).json()["error"]
        turn = {"messages": [{"role": "user", "content": "Well?"}]}
        unnamed = (await http.post("/v1/chat/completions", json=turn)).json()["error"]
    assert named["message"] == "model: 'scribe' does not support text to speech"
    assert "does not support conversations" in unnamed["message"]


async def test_realtime_sessions_select_by_name_and_kind(several: Begin) -> None:
    gateway = await several("piper-en", "scribe", "talker", "duplex")
    running = gateway.running
    async with call(running, "gpt-realtime") as caller:
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.done")
        wrong = await caller.ask("session.update", session={"type": "realtime", "audio": {"output": {"voice": "no"}}})
        assert "expected one of slt, rms" in wrong.error.message
    assert gateway.asked() == {"talker": 1}
    async with call(running, "duplex") as caller:
        assert caller.seen[0].session.audio.input.turn_detection is None, "it takes turns by itself"
    async with call(running, "gpt-4o-transcribe", extra_query={"intent": "transcription"}) as caller:
        assert caller.seen[0].session.type == "transcription"
    session = {"type": "realtime", "model": "none"}
    with pytest.raises(openai.NotFoundError):
        await running.openai().realtime.client_secrets.create(session=session)  # type: ignore[arg-type]
    session = {"type": "realtime", "model": "duplex"}
    secret = await running.openai().realtime.client_secrets.create(session=session)  # type: ignore[arg-type]
    assert secret.session.model == "duplex"  # type: ignore[union-attr]


async def test_conversation_is_transcribed_by_another_server(several: Begin) -> None:
    gateway = await several("talker", "piper-en", "scribe")
    asked = {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}, "turn_detection": None}}}
    session = {"type": "realtime", **asked}
    async with call(gateway.running, "talker") as caller:
        updated = await caller.ask("session.update", session=session)
        assert not hasattr(updated, "stretto_ignored")
        await caller.hear(spoken())
        await caller.send("input_audio_buffer.commit")
        done = (await caller.until("conversation.item.input_audio_transcription.completed"))[-1]
    assert (done.transcript, gateway.asked()) == ("a cat", {"scribe": 1})
    await gateway.show("scribe", is_up=False)
    async with call(gateway.running, "talker") as caller:
        updated = await caller.ask("session.update", session=session)
        assert updated.stretto_ignored == ["session.audio.input.transcription"]


async def test_streamed_text_selects_a_server_for_each_utterance(several: Begin) -> None:
    gateway = await several()
    async with open_socket(gateway.running, "/v1/audio/speech/stream") as opened:
        for model in ("piper-en", "second-voice"):
            config = {"type": "session.config", "model": model, "response_format": "pcm"}
            for event in (config, {"type": "input.text", "text": "A cat."}, {"type": "input.done"}):
                await opened.send(json.dumps(event))
            while isinstance(message := await asyncio.wait_for(opened.recv(), PATIENCE_S), bytes) or (
                json.loads(message)["type"] != "session.done"
            ):
                assert isinstance(message, bytes) or json.loads(message)["type"] != "error", message
    assert gateway.asked() == {"piper-en": 1, "second-voice": 1}


async def test_server_is_down_after_three_failed_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy server may answer late once or twice; one that has never answered is down at once."""
    monkeypatch.setattr(model_server, "CHECK_S", 0)
    answers, states, ended = [False, True, False, False, True, False, False, False, True], list[bool](), asyncio.Event()

    class Scripted(model_server.ModelServer):
        async def _check(self) -> bool:
            states.append(self.is_up)
            if len(states) > len(answers):
                ended.set()
                await asyncio.Event().wait()
            return answers[len(states) - 1]

    server = Scripted("voice", AsyncMock(), GatewayConfig("127.0.0.1:1"), Mock())
    server.start_checks()
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()
    await server.close()
    assert states == [False, False, True, True, True, True, True, True, False, True]


async def test_server_that_is_down_is_named_and_others_go_on(several: Begin) -> None:
    gateway = await several("piper-en", "second-voice", "scribe")
    await gateway.show("piper-en", is_up=False)
    async with gateway.running.http() as http:

        async def speak(model: str) -> Any:
            return await http.post("/v1/audio/speech", json={"input": "A cat.", "model": model})

        refused = await speak("piper-en")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["message"] == "the server 'piper-en' accepts no requests now; try again"
        assert [(await speak(model)).status_code for model in ("second-voice", "tts-1")] == [200, 200]
        assert gateway.asked() == {"second-voice": 2}, "OpenAI's names select the first one that is up"
        assert [each["id"] for each in (await http.get("/v1/models")).json()["data"]] == ["second-voice", "scribe"]
        health = (await http.get("/health")).json()
        assert {name: each["status"] for name, each in health["servers"].items()} == {
            "piper-en": "not ready",
            "second-voice": "ready",
            "scribe": "ready",
        }
        metrics = (await http.get("/metrics")).text
        assert 'gateway_server_ready{server="piper-en"} 0.0' in metrics
        assert 'gateway_server_ready{server="scribe"} 1.0' in metrics
        await gateway.show("scribe", is_up=False)
        file = {"file": ("a.ogg", RECORDING)}
        unheard = await http.post("/v1/audio/transcriptions", files=file, data={"model": "whisper-1"})
        assert (unheard.status_code, "'scribe'" in unheard.text) == (503, True)
        await gateway.show("second-voice", is_up=False)
        down = [await http.get(path) for path in ("/health", "/health/ready", "/v1/models")]
        assert [each.status_code for each in down] == [503, 503, 503]
        await gateway.show("piper-en", is_up=True)
        assert [(await speak(model)).status_code for model in ("piper-en", "tts-1")] == [200, 200]


async def test_server_may_come_back_with_another_model(several: Begin) -> None:
    gateway = await several("piper-en", "scribe")
    gateway.servers["piper-en"].profile = TTS | {"family": "newer", "voices": ["zoe"]}
    await gateway.show("piper-en", is_up=False)
    await gateway.show("piper-en", is_up=True)
    async with gateway.running.http() as http:
        assert (await http.get("/v1/audio/voices")).json()["names"] == ["zoe"]


async def test_server_that_never_answered_may_be_meant(start: Start) -> None:
    behind = FakeServer(lambda _: HEARD, profile=STREAMS)
    running = await start(named_servers={"scribe": await behind.start(), "voice": "127.0.0.1:9"})
    async with running.http() as http:
        response = await http.post("/v1/audio/speech", json={"input": "A cat."})
        model = (await http.get("/v1/models/tts-1")).json()
    assert (response.status_code, "'voice'" in response.text) == (503, True)
    assert model["id"] == "scribe", "the only model that is known"
    await behind.stop()


async def test_full_server_leaves_slots_to_others(several: Begin) -> None:
    goes_on = asyncio.Event()
    gateway = await several(
        "piper-en",
        "second-voice",
        script=[Until(goes_on), *SPOKEN],
        limits=Limits(max_active=1, max_waiting=0, drain_s=1),
    )
    async with gateway.running.http() as http:

        async def speak(model: str) -> Any:
            return await http.post("/v1/audio/speech", json={"input": "A cat.", "model": model})

        first = asyncio.ensure_future(speak("piper-en"))
        await gateway.running.until(gateway_active=1)
        assert (await speak("piper-en")).status_code == 429
        other = asyncio.ensure_future(speak("second-voice"))
        await gateway.running.until(gateway_active=2)
        assert 'gateway_server_active{server="piper-en"} 1.0' in (await http.get("/metrics")).text
        goes_on.set()
        assert [(await each).status_code for each in (first, other)] == [200, 200]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tts=a:1", "b:2"], "--server: expected NAME=HOST:PORT for each of several servers"),
        (["=a:1"], "NAME of 1 to 200 characters, got '=a:1'"),
        (["tts="], "got 'tts='"),
        (["tts=a:1", "tts=b:2"], "--server: expected different names, got 'tts' twice"),
    ],
)
def test_servers_need_different_names(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        read_config(arguments().parse_args(["--port", "0", *(f"--server={each}" for each in given)]))


def test_one_server_needs_no_name() -> None:
    one, two = (
        read_config(arguments().parse_args(["--port", "0", *(f"--server={each}" for each in given)]))
        for given in (["a:1"], ["tts=a:1", "my=stt=b:2"])
    )
    assert one.addresses == {"": "a:1"}
    assert two.addresses == {"tts": "a:1", "my=stt": "b:2"}
