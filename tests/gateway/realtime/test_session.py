"""The realtime API by OpenAI's own client: settings, items, replies, transcripts."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import Chunk, ErrorText, Until
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE, TALKS, answer, by_task, call, codes, silence, spoken

WRITTEN = [Chunk(0, None, text="fine"), Chunk(1, None, text=" then", is_final=True, is_last=True)]
NOTHING_SAID = silence(0.5)


async def test_a_written_turn_is_answered_in_speech(start: Start) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        added = await caller.say("How are you?")
        reply = {"instructions": "Be brief.", "metadata": {"n": "1"}, "options": {"seed": 5}}
        await caller.send("response.create", response=reply)
        events = await caller.until("response.done")
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert kinds[-6:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    assert events[2].previous_item_id == added.item.id
    sound = b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
    assert sound == b"\x00\x20" * (2 * RATE // 5)
    done = events[-1].response
    assert (done.status, done.metadata, done.output[0].content[0].transcript) == ("completed", {"n": "1"}, "so it")
    (request,) = running.behind.requests
    assert request["task"] == b"dialogue"
    assert json.loads(request["messages"]) == [
        {"role": "system", "text": "Be brief."},
        {"role": "user", "text": "How are you?"},
    ]
    form = {"encoding": "pcm_s16le", "sample_rate": RATE, "codes": True}
    assert json.loads(request["options"]) == {"seed": 5, "output": form}


@pytest.mark.parametrize("voice", ["alloy", {"id": "alloy"}])
async def test_a_reply_says_by_name_whose_voice_it_has(start: Start, voice: Any) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        await caller.say("Well?")
        await caller.send("response.create", response={"audio": {"output": {"voice": voice}}})
        done = (await caller.until("response.done"))[-1].response
    assert done.audio.output.voice == "alloy"


async def test_sound_leaves_as_it_comes(start: Start) -> None:
    goes_on = asyncio.Event()
    running = await start(answer(Until(goes_on)), TALKS)
    async with call(running) as caller:
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
        goes_on.set()
        await caller.until("response.done")


async def test_the_next_turn_is_asked_with_all_that_was_said(start: Start) -> None:
    running = await start(by_task(dialogue=answer(), asr=WRITTEN), TALKS)
    async with call(running) as caller:
        await caller.update(input={"transcription": {"model": "whisper-1"}})
        await caller.hear(NOTHING_SAID)
        await caller.send("input_audio_buffer.commit")
        await caller.until("conversation.item.input_audio_transcription.completed")
        await caller.send("response.create")
        await caller.until("response.done")
        await caller.say("And then?")
        await caller.send("response.create")
        await caller.until("response.done")
    first, last = (each for each in running.behind.requests if each["task"] == b"dialogue")
    assert json.loads(first["messages"]) == [{"role": "user", "audio": "audio"}]
    assert json.loads(last["messages"]) == [
        {"role": "user", "audio": "audio"},
        {"role": "assistant", "text": "so it", "codes": codes(20)},
        {"role": "user", "text": "And then?"},
    ]
    assert last["audio"][44:] == NOTHING_SAID.tobytes()


async def test_a_turn_is_answered_in_text(start: Start) -> None:
    running = await start(WRITTEN, TALKS)
    async with call(running) as caller:
        await caller.update(output_modalities=["text"])
        await caller.say("How are you?")
        await caller.send("response.create")
        events = await caller.until("response.done")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert deltas == ["fine", " then"]
    assert events[-1].response.output[0].content[0].text == "fine then"
    assert running.behind.requests[0]["task"] == b"chat"


async def test_a_reply_that_is_cancelled_ends_the_work(start: Start) -> None:
    running = await start(answer(Until(asyncio.Event())), TALKS)
    async with call(running) as caller:
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
        await caller.send("response.create", event_id="again")
        refusal = (await caller.until("error"))[-1].error
        assert (refusal.code, refusal.event_id) == ("conversation_already_has_active_response", "again")
        await caller.send("response.cancel")
        done = (await caller.until("response.done"))[-1].response
        assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
        assert done.output[0].status == "incomplete"
        await asyncio.wait_for(running.behind.cancelled.wait(), 60)
        assert (await caller.ask("response.cancel")).error.code == "response_cancel_not_active"


async def test_history_is_cut_to_what_was_heard(start: Start) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        await caller.say("Well?")
        await caller.send("response.create")
        item_id = (await caller.until("response.done"))[-1].response.output[0].id
        too_much = await caller.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=401)
        assert (too_much.error.param, "at most 400" in too_much.error.message) == ("audio_end_ms", True)
        cut = await caller.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
        assert (cut.type, cut.audio_end_ms) == ("conversation.item.truncated", 100)
        await caller.say("No, I mean ...")
        await caller.send("response.create")
        await caller.until("response.done")
        await caller.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0)
        await caller.send("response.create", event_id="no turn")
        assert (await caller.next()).error.param == "response"
    (_, heard, _) = json.loads(running.behind.requests[1]["messages"])
    assert heard == {"role": "assistant", "text": "so", "codes": [row[:5] for row in codes(20)]}


async def test_items_are_put_found_and_deleted(start: Start) -> None:
    running = await start(WRITTEN, TALKS)
    sound = np.arange(100, dtype=np.int16).tobytes()
    heard = {"type": "input_audio", "audio": base64.b64encode(sound).decode()}
    async with call(running) as caller:
        await caller.update(output_modalities=["text"], instructions="Be brief.")
        await caller.put(
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "And kind."}]}
        )
        await caller.say("two", id="second")
        await caller.put({"type": "message", "role": "user", "id": "third", "content": [heard]})
        added = await caller.ask(
            "conversation.item.create",
            previous_item_id="second",
            item={"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
        )
        assert added.previous_item_id == "second"
        await caller.next()
        found = await caller.ask("conversation.item.retrieve", item_id="third")
        assert base64.b64decode(found.item.content[0].audio) == sound
        assert (await caller.ask("conversation.item.delete", item_id="second")).item_id == "second"
        assert (await caller.ask("conversation.item.retrieve", item_id="second")).error.param == "item_id"
        await caller.send("response.create")
        await caller.until("response.done")
    assert json.loads(running.behind.requests[0]["messages"]) == [
        {"role": "system", "text": "Be brief.\nAnd kind."},
        {"role": "assistant", "text": "ok"},
        {"role": "user", "audio": "audio"},
    ]


async def test_a_failure_of_the_server_is_the_status_of_the_reply(start: Start) -> None:
    running = await start([ErrorText("invalid request: text: expected words, got '?'")], TALKS)
    async with call(running) as caller:
        await caller.say("?")
        await caller.send("response.create")
        done = (await caller.until("response.done"))[-1].response
        assert (done.status, done.output) == ("failed", [])
        assert done.status_details.error.message == "text: expected words, got '?'"


@pytest.mark.parametrize(
    "connect", [{"model": "gpt-4o-transcribe"}, {"model": "tiny", "extra_query": {"intent": "transcription"}}]
)
async def test_what_is_heard_is_written_down_with_the_bundled_model(start: Start, connect: dict[str, Any]) -> None:
    running = await start(WRITTEN)
    async with call(running, **connect) as caller:
        assert caller.seen[0].session.type == "transcription"
        await caller.hear(np.concatenate([silence(0.5), spoken(), silence(1)]))
        events = await caller.until("conversation.item.input_audio_transcription.completed")
        kinds = [event.type for event in events]
        assert kinds == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "conversation.item.input_audio_transcription.delta",
            "conversation.item.input_audio_transcription.delta",
            "conversation.item.input_audio_transcription.completed",
        ]
        assert len({getattr(event, "item_id", None) or event.item.id for event in events}) == 1
        assert events[-1].transcript == "fine then"
        assert (await caller.ask("response.create")).error.param == "type"
    assert running.behind.requests[0]["task"] == b"asr"


async def test_a_transcript_that_fails_is_told(start: Start) -> None:
    async with call(await start([ErrorText("failed: no")]), "whisper-1") as caller:
        await caller.update(type="transcription")
        await caller.hear(NOTHING_SAID)
        await caller.send("input_audio_buffer.commit")
        failed = (await caller.until("conversation.item.input_audio_transcription.failed"))[-1]
        assert failed.error.code == "server_failed"


async def test_settings_stay_where_nothing_else_is_said(start: Start) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        first = caller.seen[0].session
        assert (first.model, first.audio.input.turn_detection.threshold) == ("gpt-realtime", 0.5)
        await caller.update({"type": "server_vad", "threshold": 0.9}, instructions="Be brief.")
        updated = await caller.ask(
            "session.update", session={"type": "realtime", "audio": {"output": {"voice": "alloy"}}}
        )
        audio = updated.session.audio
        assert (audio.input.turn_detection.threshold, audio.output.voice) == (0.9, "alloy")
        assert updated.session.instructions == "Be brief."
        listens = await caller.ask("session.update", session={"type": "transcription"})
        assert listens.session.type == "transcription"


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({}, "session.type"),
        ({"type": "other"}, "session.type"),
        ({"type": "realtime", "model": "parrot"}, "session.model"),
        ({"type": "realtime", "audio": {"output": {"voice": 3}}}, "session.audio.output.voice"),
        ({"type": "realtime", "unknown": 1}, "session.unknown"),
        ({"type": "realtime", "tools": [{}]}, "session.tools"),
        (
            {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}},
            "session.audio.input.format.type",
        ),
        ({"type": "realtime", "audio": {"output": {"voice": "nobody"}}}, "session.audio.output.voice"),
        ({"type": "realtime", "audio": {"output": {"speed": 1.5}}}, "session.audio.output.speed"),
        (
            {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "session.audio.input.turn_detection.threshold",
        ),
        (
            {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}},
            "session.audio.input.turn_detection.type",
        ),
    ],
)
async def test_settings_that_cannot_be_are_refused_by_name(start: Start, session: Any, param: str) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        refusal = await caller.ask("session.update", session=session, event_id="mine")
        assert (refusal.type, refusal.error.param, refusal.error.event_id) == ("error", param, "mine")
        assert (await caller.ask("input_audio_buffer.clear")).type == "input_audio_buffer.cleared"


async def test_options_are_those_of_speech(start: Start) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        await caller.say("How are you?")
        refusal = (await caller.ask("response.create", response={"options": {"output": {"ring": {}}}})).error
        assert refusal.param == "response.options"


async def test_a_family_that_does_not_converse_says_so(start: Start) -> None:
    async with call(await start()) as caller:
        await caller.say("How are you?")
        refusal = (await caller.ask("response.create")).error
        assert (refusal.param, "'tiny' has no conversation" in refusal.message) == ("session.model", True)


@pytest.mark.parametrize(
    ("session", "response", "param"),
    [
        ({"instructions": "Be brief."}, {}, "session.instructions"),
        ({}, {"instructions": "Be brief."}, "response.instructions"),
        ({}, {"audio": {"output": {"voice": "nobody"}}}, "response.audio.output.voice"),
        ({}, {"audio": {"output": {"voice": {"id": 3}}}}, "response.audio.output.voice"),
        ({}, {"options": {"ring": 1}}, "response.options"),
        ({}, {"options": {"text": "a" * 16_384}}, "response.options"),
        ({}, {"metadata": {"n": 1}}, "response.metadata.n"),
    ],
)
async def test_what_a_reply_cannot_be_is_told_by_whose_field_it_is(
    start: Start, session: dict[str, Any], response: dict[str, Any], param: str
) -> None:
    without_system = [each | {"system": []} for each in TALKS["tasks"]]
    async with call(await start(answer(), TALKS | {"tasks": without_system})) as caller:
        await caller.update(**session)
        await caller.say("How are you?")
        refusal = (await caller.ask("response.create", response=response)).error
        assert refusal.param == param
        assert refusal.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("options.seed", "response.options.seed"),
        ("options.audio.temperature", "response.options.audio.temperature"),
        ("options.voice", "response.audio.output.voice"),
    ],
)
async def test_what_the_server_refuses_of_a_reply_has_its_name_here(start: Start, theirs: str, ours: str) -> None:
    async with call(await start([ErrorText(f"invalid request: {theirs}: expected another one")], TALKS)) as caller:
        await caller.say("How are you?")
        await caller.send("response.create")
        done = (await caller.until("response.done"))[-1].response
        # OpenAI's type of the error has no room for its message, which is sent beside it.
        assert (done.status, done.status_details.error.code) == ("failed", "invalid_value")
        assert done.status_details.error.message == f"{ours}: expected another one"
