"""Realtime sessions with a full-duplex model: one response spans the session, and speech comes while audio is sent."""

import asyncio
import base64
import json
from typing import Any

import numpy as np

from tests.client.fake_server import PROFILE, Chunk, EmptyFinal, ErrorText, Request, Step, Taken, Until
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE, call, spoken, task

DUPLEX = PROFILE | {
    "family": "both_ways",
    "reads_live_audio": True,
    "tasks": [task("duplex", needs=["audio"], speaks=True, system=[])],
}
PERSONA = DUPLEX | {"tasks": [task("duplex", needs=["audio"], speaks=True, system=["text", "audio"])]}
FRAME = 1920


class Partner:
    """A server that answers 0.3 s of audio with a frame of speech, and ends after the session has been released."""

    def __init__(self) -> None:
        self.heard, self.is_live, self.is_over = list[float](), asyncio.Event(), asyncio.Event()
        self.options: dict[str, Any] = {}
        self.turns: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> list[Step]:
        if "session" not in request:
            self.options = json.loads(request["options"]) | {"task": request["task"].decode()}
            self.turns = json.loads(request.get("messages", "[]"))
            first = Chunk(1, FRAME, "so", is_16_bit=True)
            last = Chunk(2, FRAME, " it", is_16_bit=True, is_final=True, is_last=True)
            return [Chunk(0, None, session="s1"), Until(self.is_live), first, Until(self.is_over), last]
        record = json.loads(request["session"])
        if "resume" in record:  # the client ends the session
            return [EmptyFinal()]
        self.heard += np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist()
        if len(self.heard) > 0.3 * RATE:
            self.is_live.set()
        if record["is_last"]:
            self.is_over.set()
        return [Taken(record["part"])]


async def test_duplex_speech_arrives_while_audio_is_sent(start: Start) -> None:
    partner = Partner()
    async with call(await start(partner, DUPLEX)) as caller:
        assert caller.seen[0].session.audio.input.turn_detection is None
        await caller.hear(spoken()[: RATE // 2])
        events = await caller.until("response.output_audio.delta")
        assert [event.type for event in events] == [
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.delta",
        ]
        assert base64.b64decode(events[-1].delta) == b"\x00\x20" * FRAME
        await caller.hear(spoken()[RATE // 2 : RATE])
        partner.is_over.set()
        events += await caller.until("response.done")
    response = events[-1].response
    assert (response.status, response.output[0].content[0].transcript) == ("completed", "so it")
    assert [event.type for event in events].count("response.created") == 1
    sent = np.rint(np.array(partner.heard) * 32768).astype(np.int16)
    assert (sent == spoken()[: len(sent)]).all()
    form = {"encoding": "pcm_s16le", "sample_rate": RATE}
    assert partner.options == {"task": "duplex", "live": True, "output": form, "resume_s": 10.0}


async def test_duplex_session_refuses_turn_events_and_continues(start: Start) -> None:
    partner = Partner()
    async with call(await start(partner, DUPLEX)) as caller:
        for kind in ("input_audio_buffer.commit", "input_audio_buffer.clear", "response.create"):
            error = await caller.ask(kind)
            assert error.type == "error"
            assert "the model takes turns by itself" in error.error.message
        updated = await caller.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
        assert updated.session.audio.input.turn_detection is None
        await caller.hear(spoken()[: RATE // 2])
        await caller.until("response.output_audio.delta")


async def test_cancelled_duplex_response_ends_the_session(start: Start) -> None:
    partner = Partner()
    async with call(await start(partner, DUPLEX)) as caller:
        error = await caller.ask("response.cancel")
        assert error.error.code == "response_cancel_not_active"
        await caller.hear(spoken()[: RATE // 2])
        await caller.until("response.output_audio.delta")
        await caller.send("response.cancel")
        done = (await caller.until("response.done"))[-1].response
        assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
        pcm = base64.b64encode(b"\0\0" * 480).decode()
        error = await caller.ask("input_audio_buffer.append", audio=pcm)
        assert error.error.code == "session_ended"


async def test_a_refused_session_is_a_failed_response(start: Start) -> None:
    async with call(await start([ErrorText("full: 4 sessions are open, try again")], DUPLEX)) as caller:
        await caller.hear(spoken()[:480])
        done = (await caller.until("response.done"))[-1].response
    assert done.status == "failed"
    assert "try again" in done.status_details.error.message


async def test_role_and_voice_are_fixed_after_first_audio(start: Start) -> None:
    partner = Partner()
    async with call(await start(partner, PERSONA)) as caller:
        voice = PROFILE["voices"][1]
        updated = await caller.update(instructions="You teach.", audio={"output": {"voice": voice}})
        assert updated.session.instructions == "You teach."
        await caller.hear(spoken()[: RATE // 2])
        await caller.until("response.output_audio.delta")
        assert partner.turns == [{"role": "system", "text": "You teach."}]
        assert partner.options["voice"] == voice
        for name, change in (
            ("instructions", {"instructions": "You sell."}),
            ("audio.output.voice", {"audio": {"output": {"voice": PROFILE["voices"][0]}}}),
        ):
            error = await caller.ask("session.update", session={"type": "realtime", **change})
            assert error.type == "error"
            assert f"session.{name}: expected no change after the first audio" in error.error.message
        partner.is_over.set()
        done = (await caller.until("response.done"))[-1].response
    assert (done.status, done.audio.output.voice) == ("completed", voice)


async def test_role_is_ignored_by_models_without_role_support(start: Start) -> None:
    partner = Partner()
    async with call(await start(partner, DUPLEX)) as caller:
        await caller.update(instructions="You teach.")
        await caller.hear(spoken()[: RATE // 2])
        created = (await caller.until("response.created"))[-1]
        await caller.until("response.output_audio.delta")
    assert created.stretto_ignored == ["session.instructions"]
    assert partner.turns == []


async def test_refused_role_is_reported_as_instructions_error(start: Start) -> None:
    refusal = ErrorText("invalid request: messages[0].text: expected at most 9 tokens with this voice, got 12 tokens")
    async with call(await start([refusal], PERSONA)) as caller:
        await caller.update(instructions="You teach.")
        await caller.hear(spoken()[:480])
        done = (await caller.until("response.done"))[-1].response
    assert done.status == "failed"
    assert done.status_details.error.message.startswith("session.instructions: expected at most 9 tokens")
