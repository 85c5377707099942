"""Limits for all WebSocket endpoints: keys, foreign origins, message sizes, counts, times, shutdown."""

import asyncio
import base64
import gc
import json
import logging
from contextlib import suppress
from typing import Any
from unittest.mock import AsyncMock

import pytest
import websockets
from pydantic import ValidationError
from websockets.frames import Frame, Opcode

from stretto_client import ModelProfile
from stretto_gateway import connection
from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits
from stretto_gateway.realtime import talk
from stretto_gateway.realtime.conversation import ITEM_BYTES, PART_BYTES
from stretto_gateway.realtime.events import MAX_METADATA, ReplyFields
from stretto_gateway.realtime.reply import NUMBER_BYTES, Order
from stretto_gateway.realtime.settings import MAX_IGNORED, RealtimeSettings, SettingsChange
from tests.client.fake_server import Chunk, Until
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import RATE, TALKS, Caller, answer, call, codes, silence
from tests.patience import PATIENCE_S, until_async

KEY = "sk-0123456789abcdef"
EMPTY_ITEM = ITEM_BYTES + PART_BYTES
NO_VAD = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def open_socket(running: Running, path: str = "/v1/realtime", **options: Any) -> Any:
    """Open a WebSocket as any client may; wait for the handshake.

    All messages are read. Otherwise 16 unread ones would delay the answer to a close frame until its timeout.
    """
    url = running.url.replace("http", "ws") + path
    return websockets.connect(url, proxy=None, open_timeout=PATIENCE_S, max_size=None, max_queue=None, **options)


async def status(running: Running, path: str = "/v1/realtime", **options: Any) -> int:
    """Return the HTTP status of a handshake's response."""
    try:
        async with open_socket(running, path, **options) as opened:
            return opened.response.status_code
    except websockets.InvalidStatus as error:
        return error.response.status_code


async def closed(opened: Any) -> tuple[int, str]:
    """Return the close code and reason of a WebSocket, after any messages."""
    async with asyncio.timeout(PATIENCE_S):
        with suppress(websockets.ConnectionClosed):
            while True:
                await opened.recv()
    return opened.close_code, opened.close_reason


async def test_websockets_require_a_key(start: Start) -> None:
    running = await start(keys=(KEY,))
    with pytest.raises(websockets.InvalidStatus, match="401"):
        async with running.openai(api_key=KEY[:-1]).realtime.connect(model="tiny"):
            pass
    async with running.openai(api_key=KEY).realtime.connect(model="tiny") as connection:
        assert (await connection.recv()).type == "session.created"
    for path in ("/v1/realtime", "/v1/audio/speech/stream", "/health/live", "/nowhere"):
        assert await status(running, path) in (401, 403), path
    assert await status(running, additional_headers={"authorization": f"Bearer {KEY}"}) == 101


async def test_browser_websocket_key_is_a_subprotocol(start: Start) -> None:
    running = await start(keys=(KEY,))
    async with open_socket(running, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]) as opened:
        assert opened.subprotocol == "realtime", "the key is sent to nobody"
    for protocols in (["realtime"], ["realtime", f"openai-insecure-api-key.{KEY}x"], [f"{KEY}"]):
        assert await status(running, subprotocols=protocols) == 401


@pytest.mark.parametrize(
    ("origin", "expected"), [("https://example.com", 403), ("null", 403), ("http://{host}", 101), (None, 101)]
)
async def test_cross_origin_websocket_requires_a_key(start: Start, origin: str | None, expected: int) -> None:
    running = await start()
    host = running.url.removeprefix("http://")
    shown: Any = None if origin is None else origin.format(host=host)
    assert await status(running, origin=shown) == expected
    for path in ("/v1/audio/speech/stream", "/nowhere"):  # whatever there may be one day
        assert await status(running, path, origin="https://example.com") == 403
    assert await running.metric('gateway_answers_total{route="-",status="403"}') >= 2


async def test_an_unknown_model_opens_no_session(start: Start) -> None:
    with pytest.raises(websockets.InvalidStatus) as raised:
        async with (await start()).openai().realtime.connect(model="parrot"):
            pass
    answer = raised.value.response
    assert (answer.status_code, json.loads(answer.body)["error"]["param"]) == (404, "model")


async def test_realtime_sessions_are_limited_in_number(start: Start) -> None:
    running = await start(limits=Limits(max_sessions=4, drain_s=1))
    async with call(running, "tiny"), call(running, "tiny"):
        assert await running.metric("gateway_sessions") == 2
        assert await status(running) == 429, "alone a caller has half"
    await running.until(gateway_sessions=0)
    assert await status(running) == 101


async def test_one_key_cannot_exhaust_sessions_or_memory(start: Start) -> None:
    other = f"{KEY}-of-another"
    running = await start(keys=(KEY, other), limits=Limits(max_sessions=4, max_held_bytes=2 * RATE, drain_s=1))
    one, another = ({"authorization": f"Bearer {key}"} for key in (KEY, other))
    append = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(RATE)).decode()})
    async with (
        open_socket(running, additional_headers=one) as first,
        open_socket(running, additional_headers=one) as second,
    ):
        assert await status(running, additional_headers=one) == 429
        for opened in (first, second):
            await ask(opened, json.dumps({"type": "session.update", "session": NO_VAD}), "session.updated")
        await first.send(append)
        assert (await ask(first, '{"type": "no"}', "error"))["error"]["param"] == "type"  # after that
        assert (await ask(second, append, "error"))["error"]["code"] == "unavailable"
        async with open_socket(running, additional_headers=another) as third:
            await ask(third, json.dumps({"type": "session.update", "session": NO_VAD}), "session.updated")
            few = append.replace(base64.b64encode(bytes(RATE)).decode(), "AAAA" * 2)
            await third.send(few)
            await ask(third, '{"type": "input_audio_buffer.clear"}', "input_audio_buffer.cleared")


async def ask(opened: Any, message: str, kind: str) -> Any:
    """Send an event and return the next event of a type."""
    await opened.send(message)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            event = json.loads(await opened.recv())
            if event["type"] == kind:
                return event


async def test_reply_input_audio_is_held_until_the_reply_ends(start: Start) -> None:
    goes_on = asyncio.Event()
    running = await start(answer(Until(goes_on)), TALKS)
    held = running.app.state.gateway.sessions.held
    async with call(running) as caller:
        await caller.update()
        await caller.hear(silence(0.5))
        await caller.send("input_audio_buffer.commit")
        item = (await caller.until("conversation.item.done"))[-1].item.id
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
        await caller.send("conversation.item.delete", item_id=item)
        await caller.until("conversation.item.deleted")
        assert held.num_bytes >= RATE, "the reply has it still"
        goes_on.set()
        await caller.until("response.done")
        await until_async(lambda: held.num_bytes < RATE)  # except for answered messages
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Order) and each.files]


async def spoken_reply(caller: Caller) -> Any:
    """Return the item of a reply to a written turn."""
    await caller.update()
    await caller.say("Well?", id="turn")
    await caller.send("response.create")
    return (await caller.until("response.done"))[-1].response


async def test_held_reply_codes_are_freed_with_their_item(start: Start) -> None:
    running = await start([Chunk(0, 640, is_16_bit=True, codes=codes(1000)), *answer()], TALKS)
    held = running.app.state.gateway.sessions.held
    async with call(running) as caller:
        done = await spoken_reply(caller)
        assert held.num_bytes >= 2 * 1020 * 4, "two streams of int32"
        await caller.send("conversation.item.delete", item_id=done.output[0].id)
        await caller.until("conversation.item.deleted")
        assert held.num_bytes < EMPTY_ITEM + 100, "the user's words"


async def test_sent_conversation_codes_count_towards_held_memory(start: Start) -> None:
    goes_on = asyncio.Event()
    replies = iter([answer(), answer(Until(goes_on))])
    running = await start(lambda _: next(replies), TALKS)
    held = running.app.state.gateway.sessions.held
    async with call(running) as caller:
        await spoken_reply(caller)
        await caller.say("And then?")
        before = held.num_bytes
        await caller.send("response.create")
        await caller.until("response.created")
        assert held.num_bytes >= before + 2 * 20 * NUMBER_BYTES
        goes_on.set()
        await caller.until("response.done")


async def test_reply_exceeding_memory_fails_without_ending_the_session(start: Start) -> None:
    many = Chunk(0, 640, is_16_bit=True, codes=codes(1000))
    running = await start([many] * 10 + answer(), TALKS, limits=Limits(max_held_bytes=40_000, drain_s=1))
    async with call(running) as caller:
        done = await spoken_reply(caller)
        assert (done.status, done.status_details.error.code) == ("failed", "unavailable")
        await caller.send("conversation.item.delete", item_id=done.output[0].id)
        await caller.until("conversation.item.deleted")
        assert running.app.state.gateway.sessions.held.num_bytes < EMPTY_ITEM + 100


async def test_reply_deleted_during_playback_frees_its_memory(start: Start) -> None:
    goes_on = asyncio.Event()
    running = await start(answer(Until(goes_on)), TALKS)
    async with call(running) as caller:
        await caller.update()
        await caller.say("Well?")
        await caller.send("response.create")
        added = (await caller.until("response.output_item.added"))[-1]
        await caller.until("response.output_audio.delta")
        await caller.send("conversation.item.delete", item_id=added.item.id)
        await caller.until("conversation.item.deleted")
        goes_on.set()
        done = (await caller.until("response.done"))[-1].response
        assert (done.status, done.output[0].content[0].transcript) == ("completed", "so it")
        assert running.app.state.gateway.sessions.held.num_bytes < EMPTY_ITEM + 100


async def test_error_on_an_open_socket_is_sent_as_an_event(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start(answer(), TALKS)
    catalogue = running.app.state.gateway.catalogue

    async def gone() -> None:
        raise ApiError(503, "the speech server accepts no requests now; try again", code="unavailable")

    monkeypatch.setattr(catalogue, "profile", gone)
    monkeypatch.setattr(catalogue, "model", AsyncMock(return_value=ModelProfile("talker", 24_000, 100)))
    async with open_socket(running) as opened:
        told = json.loads(await opened.recv())
        assert (told["type"], told["error"]["code"]) == ("error", "unavailable")
        assert await closed(opened) == (1013, "unavailable")
    assert await running.metric('gateway_answers_total{route="/v1/realtime",status="500"}') == 0


async def test_recordings_awaiting_transcripts_count_as_held_memory(start: Start) -> None:
    goes_on = asyncio.Event()
    written = [Chunk(0, None, text="so"), Until(goes_on), Chunk(1, None, text=" it", is_final=True, is_last=True)]
    running = await start(written)
    held = running.app.state.gateway.sessions.held
    async with call(running, "whisper-1") as caller:
        await caller.update(type="transcription")
        for num in (1, 2):
            await caller.hear(silence(0.5))
            await caller.send("input_audio_buffer.commit")
            await caller.until("conversation.item.done")
            assert held.num_bytes == num * RATE
        goes_on.set()
        for _ in range(2):
            await caller.until("conversation.item.input_audio_transcription.completed")
        await until_async(lambda: not held.num_bytes)


async def test_recordings_awaiting_transcripts_are_limited_in_number(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "MAX_WAITING", 1)
    goes_on = asyncio.Event()
    written = [Until(goes_on), Chunk(0, None, text="so", is_final=True, is_last=True)]
    async with call(await start(written), "whisper-1") as caller:
        await caller.update(type="transcription")
        for _ in range(2):
            await caller.hear(silence(0.5))
            await caller.send("input_audio_buffer.commit")
        failed = (await caller.until("conversation.item.input_audio_transcription.failed"))[-1]
        assert (failed.error.code, failed.error.message) == (
            "rate_limit_exceeded",
            "1 recordings are waiting already; try again",
        )
        goes_on.set()
        await caller.until("conversation.item.input_audio_transcription.completed")


def test_metadata_validation_errors_are_limited() -> None:
    with pytest.raises(ValidationError) as raised:
        ReplyFields.model_validate({"metadata": {str(number): number for number in range(10_000)}})
    assert raised.value.error_count() <= MAX_METADATA + 1
    with pytest.raises(ValidationError, match="at most 16 items"):
        ReplyFields.model_validate({"metadata": {str(number): "" for number in range(10_000)}})


def test_stored_session_settings_are_limited_in_length() -> None:
    long = "a" * 100_001
    for session in ({"instructions": long}, {"audio": {"input": {"transcription": {"language": long}}}}):
        change = SettingsChange(RealtimeSettings(model="tiny"), {"type": "realtime"} | session, "tiny")
        assert long not in repr(change.settings)
        assert ["at most" in error.message for error in change.errors] == [True]


def test_session_update_errors_and_ignored_fields_are_bounded() -> None:
    names = {f"{n}{'a' * 1000}\ud800": n for n in range(1000)}
    change = SettingsChange(
        RealtimeSettings(model="tiny"), names | {"audio": {"input": {"format": {"rate": 1}}}}, "tiny"
    )
    assert len(change.ignored) == MAX_IGNORED
    assert max(len(error.message) for error in change.ignored) < 400
    assert [error.param for error in change.errors] == ["session.audio.input.format.rate"]


async def test_websocket_message_size_is_limited(start: Start) -> None:
    running = await start(limits=Limits(max_event_bytes=1000, drain_s=1))
    async with open_socket(running) as opened:
        await opened.send(" " * 1001)
        assert (await closed(opened))[0] == 1009
    async with open_socket(running) as opened:
        await opened.send([" " * 600, " " * 600])  # in fragments
        assert (await closed(opened))[0] == 1009


async def test_websocket_message_fragments_are_limited(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_FRAMES", 10)
    async with open_socket(await start()) as opened:
        opened.protocol.send_text(b"", fin=False)
        frames = b"".join(Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) for _ in range(20))
        opened.transport.write(b"".join(opened.protocol.data_to_send()) + frames)
        assert (await closed(opened)) == (1008, "a message must have at most 10 frames")


async def test_uncommitted_audio_length_is_limited(start: Start) -> None:
    running = await start(answer(), TALKS, limits=Limits(max_turn_s=0.5, drain_s=1))
    async with call(running) as caller:
        await caller.update()
        await caller.hear(silence(0.5))
        refusal = (await caller.ask("input_audio_buffer.append", audio="AAA=")).error
        assert (refusal.param, refusal.message) == (
            "audio",
            "audio: expected at most 12000 uncommitted samples, got 12001 samples",
        )
        await caller.send("input_audio_buffer.commit")
        await caller.until("conversation.item.done")
        assert "got 0 ms" in (await caller.ask("input_audio_buffer.commit")).error.message
        await caller.hear(silence(0.5))
        await caller.ask("input_audio_buffer.clear")
        held = running.app.state.gateway.sessions.held
        assert held.num_bytes == RATE + EMPTY_ITEM, "half a second that is committed"
    await until_async(lambda: not held.num_bytes)


async def test_silent_input_audio_is_not_kept(start: Start) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        for _ in range(4):
            await caller.hear(silence(2.5))  # more than the family accepts at once
            assert (await caller.ask("input_audio_buffer.append", audio="?")).error.param == "audio"
            assert running.app.state.gateway.sessions.held.num_bytes < RATE


async def test_memory_held_by_all_sessions_is_limited(start: Start) -> None:
    running = await start(limits=Limits(max_held_bytes=2 * RATE, drain_s=1))
    async with call(running) as first, call(running) as second:
        await first.update()
        await second.update()
        await first.hear(silence(0.5))
        assert (
            await first.ask("conversation.item.retrieve", item_id="0")
        ).error.code == "item_retrieve_invalid_item_id"  # after that
        assert (await second.ask("input_audio_buffer.append", audio="AAA=")).error.code == "unavailable"
        await first.ask("input_audio_buffer.clear")
        await second.send("input_audio_buffer.append", audio="AAA=")
        assert (await second.ask("input_audio_buffer.clear")).type == "input_audio_buffer.cleared"


@pytest.mark.parametrize(
    "limits", [Limits(max_items=3, drain_s=1), Limits(max_body_bytes=4 * (EMPTY_ITEM + 4) - 1, drain_s=1)]
)
async def test_conversation_drops_its_oldest_items_at_the_limit(start: Start, limits: Limits) -> None:
    running = await start(answer(), TALKS, limits=limits)
    async with call(running) as caller:
        await caller.say("s", id="0", role="system")
        for name in "123":
            await caller.say("a", id=name)
        deleted = [event.item_id for event in caller.seen if event.type == "conversation.item.deleted"]
        if not deleted:
            deleted = [(await caller.next()).item_id]
        assert deleted == ["1"]
        await caller.send("response.create")
        await caller.until("response.done")
    turns = json.loads(running.behind.requests[0]["messages"])
    assert turns == [{"role": "system", "text": "s"}, *([{"role": "user", "text": "a"}] * 2)]


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        (Limits(max_items=3, drain_s=1), "item"),
        (Limits(max_body_bytes=4 * (ITEM_BYTES + 64 * PART_BYTES) - 1, drain_s=1), "item.content"),
    ],
)
async def test_system_items_are_kept_and_limited(start: Start, limits: Limits, param: str) -> None:
    running = await start(answer(), TALKS, limits=limits)
    nothing = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": ""}] * 64}
    async with call(running) as caller:
        for _ in range(3):
            await caller.put(nothing)
        refusal = (await caller.ask("conversation.item.create", item=nothing)).error
        assert (refusal.param, refusal.message.startswith(f"{param}: expected at most ")) == (param, True)
        held = running.app.state.gateway.sessions.held
        assert held.num_bytes == 3 * (ITEM_BYTES + 64 * PART_BYTES)
        await caller.say("Well?")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(idle_s=0.2, drain_s=1), "nothing was received for 0.2 s"),
        (Limits(session_s=0.2, drain_s=1), "the session has reached its maximum duration of 0.2 s"),
    ],
)
async def test_realtime_session_has_idle_and_duration_limits(start: Start, limits: Limits, reason: str) -> None:
    async with open_socket(await start(limits=limits)) as opened:
        assert json.loads(await opened.recv())["type"] == "session.created"
        assert json.loads(await opened.recv())["error"]["message"] == f"the session is over: {reason}"
        assert await closed(opened) == (1000, reason)


async def ask_again(opened: Any, message: str) -> None:
    """Send the same message until the connection is closed."""
    with suppress(websockets.ConnectionClosed):
        while True:
            await opened.send(message)


async def test_stalled_realtime_client_is_disconnected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLOSE_S", 0.1)
    running = await start(limits=Limits(stall_s=0.3, drain_s=1))
    update = {"type": "session.update", "session": NO_VAD | {"instructions": "a" * 100_000}}
    async with open_socket(running, compression=None) as opened:
        opened.transport.pause_reading()
        asking = asyncio.ensure_future(ask_again(opened, json.dumps(update)))
        async with asyncio.timeout(PATIENCE_S):
            while await running.metric("gateway_sessions"):
                await asyncio.sleep(0.02)
            while any(
                isinstance(each, connection.LimitedWebSocket) for each in running.server.server_state.connections
            ):
                await asyncio.sleep(0.02)
        asking.cancel()


async def test_client_disconnect_cancels_the_request(start: Start) -> None:
    running = await start(answer(Until(asyncio.Event())), TALKS)
    async with call(running) as caller:
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
    await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)


async def test_speech_in_progress_completes_before_shutdown(start: Start) -> None:
    goes_on = asyncio.Event()
    running = await start(answer(Until(goes_on)), TALKS, limits=Limits(drain_s=60))
    async with call(running) as caller, call(running) as idle:
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.output_audio.delta")
        running.server.should_exit = True
        assert (await idle.next()).error.message == "the session is over: the gateway is shutting down"
        with pytest.raises(websockets.ConnectionClosed, match="1012"):
            await idle.next()
        goes_on.set()
        assert (await caller.until("response.done"))[-1].response.status == "completed"


async def test_realtime_internal_error_closes_the_socket_and_is_logged(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(answer(), TALKS)
    async with open_socket(running) as opened:
        await opened.recv()
        monkeypatch.setattr(running.app.state.gateway.catalogue, "model", None)
        await opened.send(json.dumps({"type": "session.update", "session": NO_VAD}))
        assert (await closed(opened))[0] == 1011
    assert "TypeError" in caplog.text
    assert await running.metric('gateway_answers_total{route="/v1/realtime",status="500"}') == 1


async def test_log_has_the_request_but_no_content(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    running = await start(answer(), TALKS, keys=(KEY,))
    async with running.openai(api_key=KEY).realtime.connect(model="talker", extra_query={"x": "secret"}) as connection:
        await connection.send({"type": "conversation.item.create", "item": {"content": "secret"}})  # type: ignore[arg-type]
        await connection.recv()
        assert (await connection.recv()).type == "error"
    await until_async(lambda: "WEBSOCKET /v1/realtime 101" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "stretto_gateway"]
    assert not any("secret" in line or KEY in line for line in lines)
