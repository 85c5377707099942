"""Uploaded voices in chats and realtime sessions, by their ids and by their names."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from stretto_gateway.config import Limits
from tests.client.fake_server import Request, Step
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import call, call_by, spoken, task
from tests.gateway.realtime.test_duplex import PERSONA, Partner
from tests.gateway.test_chat import QUESTION, REPLY
from tests.gateway.test_voices import CLONES, KEYS, RECORDING, added_voice

TTS = CLONES["tasks"][0]
TALKS = CLONES | {
    "tasks": [*CLONES["tasks"], task("dialogue", needs=[], also=["text", "audio"], system=["text", "audio"])]
}
MUTE = CLONES | {"tasks": [*CLONES["tasks"], task("dialogue", needs=[], also=["text", "audio"])]}
SPEAKING: dict[str, Any] = {"modalities": ["text", "audio"]}
GREETING = [{"role": "user", "content": "How are you?"}]


def script(request: Request) -> list[Step]:
    return REPLY


def asked(running: Running) -> tuple[list[dict[str, Any]], Any]:
    """Return the turns of the last request, and its files."""
    request = running.behind.requests[-1]
    return json.loads(request["messages"]), request.get("audio")


@pytest.mark.parametrize(("is_named", "is_object"), [(True, False), (False, True)])
async def test_chat_reply_is_in_an_uploaded_voice(
    start: Start, tmp_path: Path, is_named: bool, is_object: bool
) -> None:
    running = await start(script, TALKS, voices=tmp_path, strict=True)
    voice = await added_voice(running)
    name: Any = "Mine" if is_named else voice
    audio: Any = {"voice": {"id": name} if is_object else name, "format": "wav"}
    create = running.openai().chat.completions.create
    reply = await create(model="gpt-audio", messages=GREETING, audio=audio, **SPEAKING)  # type: ignore[call-overload]
    assert reply.choices[0].message.audio.data
    turns, files = asked(running)
    assert turns == [{"role": "system", "audio": "audio"}, {"role": "user", "text": "How are you?"}]
    assert files == RECORDING
    assert "voice" not in json.loads(running.behind.requests[-1]["options"])
    await create(model="gpt-audio", messages=QUESTION, audio=audio, **SPEAKING)  # type: ignore[call-overload]
    turns, files = asked(running)
    assert turns[:2] == [
        {"role": "system", "text": "You are terse.", "audio": "audio"},
        {"role": "user", "audio": "audio"},
    ]
    assert list(files) == [RECORDING, b"RIFF"]


@pytest.mark.parametrize(
    ("profile", "name", "code", "message"),
    [
        (MUTE, "mine", "unsupported", "voice: 'tiny' does not clone voices in task 'dialogue'"),
        (TALKS, f"voice_{'0' * 32}", "voice_not_found", "voice: unknown voice"),
        (TALKS, "nobody", "invalid_value", "voice: expected one of slt, rms, mine, alloy"),
    ],
)
async def test_chat_names_the_voice_that_it_cannot_use(
    start: Start, tmp_path: Path, profile: dict[str, Any], name: str, code: str, message: str
) -> None:
    running = await start(script, profile, voices=tmp_path)
    await added_voice(running)
    num_asked = len(running.behind.requests)
    async with running.http() as http:
        body = {"messages": GREETING, "audio": {"voice": name, "format": "wav"}} | SPEAKING
        error = (await http.post("/v1/chat/completions", json=body)).json()["error"]
    assert (error["param"], error["code"]) == ("voice", code)
    assert error["message"].startswith(message)
    assert len(running.behind.requests) == num_asked


async def test_chat_voice_counts_as_held_memory(start: Start, tmp_path: Path) -> None:
    await added_voice(await start(script, TALKS, voices=tmp_path))
    running = await start(script, TALKS, Limits(max_held_bytes=len(RECORDING) - 1, drain_s=1), voices=tmp_path)
    async with running.http() as http:
        for name, status in (("slt", 200), ("mine", 503)):
            body = {"messages": GREETING, "audio": {"voice": name, "format": "wav"}} | SPEAKING
            assert (await http.post("/v1/chat/completions", json=body)).status_code == status


async def test_realtime_replies_are_in_an_uploaded_voice(start: Start, tmp_path: Path) -> None:
    running = await start(script, TALKS, voices=tmp_path)
    voice = await added_voice(running)
    async with call(running) as caller:
        for name in ("mine", voice):
            updated = await caller.update(audio={"output": {"voice": name}}, instructions="Be kind.")
            assert (updated.type, updated.session.audio.output.voice) == ("session.updated", name)
            await caller.say("How are you?")
            await caller.send("response.create")
            assert (await caller.until("response.done"))[-1].response.status == "completed"
            turns, files = asked(running)
            assert turns[0] == {"role": "system", "text": "Be kind.", "audio": "audio"}
            assert files == RECORDING
        await caller.say("And now?")
        await caller.send("response.create", response={"audio": {"output": {"voice": "rms"}}})
        await caller.until("response.done")
        turns, files = asked(running)
        assert (turns[0], files) == ({"role": "system", "text": "Be kind."}, None)
        assert json.loads(running.behind.requests[-1]["options"])["voice"] == "rms"
        await caller.update(audio={"output": {"voice": "slt"}}, instructions="")
        await caller.say("And now?")
        await caller.send("response.create", response={"audio": {"output": {"voice": "MINE"}}})
        await caller.until("response.done")
        turns, files = asked(running)
        assert (turns[0], files) == ({"role": "system", "audio": "audio"}, RECORDING)
    assert running.app.state.gateway.sessions.held.num_bytes == 0


async def test_realtime_voices_belong_to_the_key_of_the_session(start: Start, tmp_path: Path) -> None:
    running = await start(script, TALKS, keys=KEYS, voices=tmp_path)
    await added_voice(running, KEYS[0])
    named: Any = {"type": "realtime", "audio": {"output": {"voice": "mine"}}}
    owner, other = (running.openai(api_key=key) for key in KEYS)
    async with call_by(owner, "tiny") as caller:
        assert (await caller.ask("session.update", session=named)).type == "session.updated"
    async with call_by(other, "tiny") as caller:
        error = (await caller.ask("session.update", session=named)).error
        assert error.param == "session.audio.output.voice"
    secret = await owner.realtime.client_secrets.create(session=named)
    async with call_by(running.openai(api_key=secret.value), "tiny") as caller:
        assert caller.seen[0].session.audio.output.voice == "mine"
        await caller.say("How are you?")
        await caller.send("response.create")
        await caller.until("response.done")
    assert asked(running)[1] == RECORDING
    with pytest.raises(openai.BadRequestError, match=r"session\.audio\.output\.voice: expected one of slt, rms, alloy"):
        await other.realtime.client_secrets.create(session=named)


async def test_realtime_refuses_an_uploaded_voice_that_no_conversation_can_have(start: Start, tmp_path: Path) -> None:
    running = await start(script, MUTE, voices=tmp_path)
    await added_voice(running)
    async with call(running) as caller:
        error = (await caller.ask("session.update", session={"audio": {"output": {"voice": "mine"}}})).error
        assert error.param == "session.audio.output.voice"
        assert "'tiny' does not clone voices in conversations" in error.message
        assert (await caller.next()).session.audio.output.voice is None


DUPLEX = PERSONA | {"tasks": [*PERSONA["tasks"], TTS]}


async def start_duplex(start: Start, folder: Path) -> tuple[Running, Partner]:
    """Start a gateway of a full-duplex model that also speaks texts, with an uploaded voice."""
    partner = Partner()
    running = await start(
        lambda request: REPLY if request.get("task") == b"tts" else partner(request), DUPLEX, voices=folder
    )
    await added_voice(running)
    return running, partner


async def test_duplex_session_is_in_an_uploaded_voice(start: Start, tmp_path: Path) -> None:
    running, partner = await start_duplex(start, tmp_path)
    settings = {"type": "realtime", "instructions": "Be kind.", "audio": {"output": {"voice": "mine"}}}
    async with call(running) as caller:
        assert (await caller.ask("session.update", session=settings)).session.audio.output.voice == "mine"
        await caller.hear(spoken()[:12_000])
        await caller.until("response.output_audio.delta")
        partner.is_over.set()
        assert partner.turns == [{"role": "system", "text": "Be kind.", "audio": "audio"}]
        (opening,) = [request for request in running.behind.requests if request.get("task") == b"duplex"]
        assert opening["audio"] == RECORDING
        assert "voice" not in partner.options
