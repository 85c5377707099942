"""`WS /v1/audio/speech/stream`: speech for streamed text, limits, and disconnecting clients."""

import asyncio
import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import av
import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocket

from stretto_gateway import connection
from stretto_gateway.answers import ApiError
from stretto_gateway.config import GatewayConfig, Limits
from stretto_gateway.encoding import MEDIA_TYPES, default_rate
from stretto_gateway.fields import held_bytes
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech_stream import KINDS, StreamChannel, StreamSession, run
from tests.client.fake_server import PROFILE, Abort, Chunk, ErrorText, FakeServer, Request, Step, Taken, Until
from tests.gateway.conftest import ALIGNED, ALIGNS, NUM_SAMPLES, SPOKEN, Start
from tests.gateway.line import Line
from tests.gateway.realtime.test_bounds import closed, open_socket
from tests.gateway.test_fuzz import JSON
from tests.gateway.test_voices import CLONES, RECORDING, added_voice
from tests.patience import PATIENCE_S, until_async
from tests.tiers import by_night

PATH = "/v1/audio/speech/stream"
PIECES = ("It is ", "twen", "ty past", " nine.")


class Writer:
    """Client with one WebSocket."""

    def __init__(self, opened: Any):
        self.opened = opened

    async def send(self, kind: str, **fields: Any) -> None:
        await self.opened.send(json.dumps({"type": kind, **fields}))

    async def write(self, *pieces: str) -> None:
        for piece in pieces:
            await self.send("input.text", text=piece)

    async def next(self) -> Any:
        """Return the next event or bytes."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.opened.recv()
        return message if isinstance(message, bytes) else json.loads(message)

    async def until(self, kind: str) -> tuple[list[dict[str, Any]], bytes]:
        """Return the events up to the next of this type, and the audio between them."""
        events, sound = list[dict[str, Any]](), b""
        while not events or events[-1]["type"] != kind:
            message = await self.next()
            if isinstance(message, bytes):
                sound += message
            else:
                events.append(message)
        return events, sound

    async def utterance(self, *pieces: str) -> tuple[list[dict[str, Any]], bytes]:
        await self.write(*pieces)
        await self.send("input.done")
        return await self.until("session.done")


async def begin(opened: Any, **config: Any) -> Writer:
    """Return a client that has sent its session configuration."""
    writer = Writer(opened)
    await writer.send("session.config", **{"response_format": "pcm"} | config)
    return writer


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def packets(data: bytes, name: str) -> list[bytes]:
    """Return a file's contents; for Ogg only its packets, because page serial numbers are random."""
    if name != "opus":
        return [data]
    with av.open(io.BytesIO(data), format="ogg") as container:
        return [bytes(packet) for packet in container.demux(audio=0)]


@pytest.mark.parametrize("name", ["opus", *by_night(*(name for name in MEDIA_TYPES if name != "opus"))])
async def test_streamed_text_audio_matches_whole_text_in_every_format(start: Start, name: str) -> None:
    running = await start()
    request = {"model": "tts-1", "voice": "rms", "response_format": name, "seed": 3, "check": "off"}
    async with running.http() as http:
        whole = (await http.post("/v1/audio/speech", json=request | {"input": "".join(PIECES)})).content
    async with open_socket(running, PATH) as opened:
        events, sound = await (await begin(opened, **request)).utterance(*PIECES)
    assert packets(sound, name) == packets(whole, name)
    assert kinds(events) == ["audio.start", "audio.done", "session.done"]
    begun, done, over = ({name: event[name] for name in event if name != "event_id"} for event in events)
    place = {"utterance_index": 0, "sentence_index": 0}
    assert (
        begun == {"type": "audio.start", "sentence_text": "", "format": name, "sample_rate": default_rate(name)} | place
    )
    assert done == {"type": "audio.done", "total_bytes": len(whole), "error": False} | place
    assert over == {"type": "session.done", "utterance_index": 0, "total_sentences": 1}
    for key in ("text", "options"):
        assert running.behind.requests[0][key] == running.behind.requests[1][key]
    assert await running.metric("audio_ttfp_seconds_count") == 2


@pytest.mark.parametrize("text", ["**A** [cat](http://x.y) 😀", "<speak>A <sub alias='cat'>c</sub></speak>"])
async def test_markup_is_not_read_aloud_in_streamed_text(start: Start, text: str) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        writer = Writer(opened)
        await writer.send("session.config", response_format="pcm")
        events, _ = await writer.utterance(*text)
        assert "error" not in [event["type"] for event in events]
        await writer.send("session.config", response_format="pcm", markup="none")
        await writer.utterance("**A** cat")
        await writer.send("session.config")
        events, _ = await writer.utterance("<speak>", "A & B")
        assert events[0]["message"].startswith("text: expected well-formed SSML")
    assert [request["text"].decode() for request in running.behind.requests] == ["A cat", "**A** cat"]


async def test_streamed_reasoning_is_not_spoken_and_is_reported(start: Start) -> None:
    running = await start()
    text = "<think>The user greets.</think>It is nine.<|im_end|>"
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        for size in (1, 4, len(text)):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            events, _ = await writer.utterance(*pieces)
            assert events[-1]["stretto_ignored"] == ["input.think", "input.im_end"]
        events, _ = await writer.utterance("It is ten.")
        assert "stretto_ignored" not in events[-1]
    assert [each["text"].decode() for each in running.behind.requests] == ["It is nine."] * 3 + ["It is ten."]


async def test_directions_and_transliterated_words_of_a_stream_are_reported(start: Start) -> None:
    running = await start(profile=PROFILE | {"options": ["transliterate"]})
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        events, _ = await writer.utterance("*sighs* It is 李.")
        assert events[-1]["stretto_ignored"] == ["input.sighs", "input.transliterated.%E6%9D%8E"]


async def test_first_sentence_is_spoken_while_the_next_is_written(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write("It is twenty past nine. And ")
        await writer.until("audio.start")
        assert isinstance(await writer.next(), bytes)
        await writer.write("now it is ten.")
        await writer.send("input.done")
        await writer.until("session.done")
    assert [request["text"] for request in running.behind.requests] == [
        b"It is twenty past nine.",
        b"And now it is ten.",
    ]


async def test_streamed_text_is_forwarded_incrementally(start: Start) -> None:
    parts, complete = list[dict[str, Any]](), asyncio.Event()
    text = ""

    def script(request: Request) -> list[Step]:
        nonlocal text
        text += request["text"].decode()
        if "session" not in request:
            return [Chunk(0, 640, is_16_bit=True, session="s1"), Until(complete), *SPOKEN]
        parts.append(json.loads(request["session"]))
        if parts[-1]["is_last"]:
            complete.set()
        return [Taken(parts[-1]["part"])]

    running = await start(script, PROFILE | {"reads_live_text": True})
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write(PIECES[0])
        await writer.until("audio.start")  # before the rest is written
        events, _ = await writer.utterance(*PIECES[1:])
    assert kinds(events) == ["audio.done", "session.done"]
    assert text == "".join(PIECES)
    assert [part["part"] for part in parts] == list(range(len(parts)))
    assert [part["is_last"] for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_one_socket_serves_several_utterances_with_changing_config(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        for index in range(2):
            events, _ = await writer.utterance("A cat.")
            assert {event["utterance_index"] for event in events} == {index}
        events, sound = await writer.utterance()
        assert (kinds(events), events[0]["total_sentences"], sound) == (["session.done"], 0, b"")
        await writer.send("session.config", response_format="wav", voice="rms")
        events, sound = await writer.utterance("A cat.")
        assert (events[0]["utterance_index"], sound[:4]) == (3, b"RIFF")
        await writer.write("A dog.")
        await writer.send("session.close")
        assert kinds((await writer.until("session.done"))[0]) == ["audio.start", "audio.done", "session.done"]
        assert await closed(opened) == (1000, "")
    await running.idle()


async def test_stored_voices_work_in_streams_and_count_as_held_memory(start: Start, tmp_path: Path) -> None:
    limits = Limits(max_held_bytes=2 * len(RECORDING) + 100, drain_s=1)  # a caller alone has half
    running = await start(SPOKEN, CLONES, voices=tmp_path / "voices", limits=limits)
    voice = await added_voice(running)
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened, voice=voice)
        for _ in range(3):
            events, sound = await writer.utterance("A cat.")
            assert kinds(events) == ["audio.start", "audio.done", "session.done"]
            assert sound
    assert all(request["audio"] == RECORDING for request in running.behind.requests)
    assert not running.app.state.gateway.sessions.held.num_bytes
    await running.idle()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "input.text", "text": "A cat."}, "type"),
        ({"type": "input.done"}, "type"),
        ({"type": "input.more"}, "type"),
        ({"type": "session.config", "voice": "nobody"}, "voice"),
        ({"type": "session.config", "speed": 5}, "speed"),
        ({"type": "session.config", "model": "parrot"}, "model"),
        ({"type": "session.config", "response_format": "ogg"}, "response_format"),
        ({"type": "session.config", "stream_audio": False}, "stream_audio"),
        ({"type": "session.config", "input": "A cat."}, "input"),
        ({"type": "session.config", "schedule": [[[[[[[[]]]]]]]]}, "schedule"),
        ({"type": "session.config", "text": [[]] * 10_000}, None),
        ({"type": "input.text", "text": 7}, "text"),
        ({"type": "input.text", "text": "\ud800"}, "text"),
        ({"type": "input.text"}, "text"),
        ({"type": "input.text", "text": "", "mood": 1}, "mood"),
        ({"type": "input.done", "mood": 1}, "mood"),
        ([], None),
    ],
)
async def test_errors_are_named_and_the_session_continues(start: Start, message: Any, param: str | None) -> None:
    running = await start(strict=True)
    async with open_socket(running, PATH) as opened:
        await opened.send(json.dumps(message))
        told = await Writer(opened).next()
        assert (told["type"], told["error"]["param"], told["message"]) == ("error", param, told["error"]["message"])
        assert "utterance_index" not in told
        assert kinds((await (await begin(opened)).utterance("A cat."))[0])[-1] == "session.done"
    assert len(running.behind.requests) == 1


async def test_speech_stream_uses_the_session_speed(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        assert len((await (await begin(opened, speed=2)).utterance("A cat."))[1]) == NUM_SAMPLES


async def test_words_come_before_the_audio_in_which_they_begin(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        events, _ = await (await begin(opened, timestamps=True, speed=2)).utterance("A cat.")
        told = [(event["type"], event.get("words")) for event in events[:3]]
        assert told == [
            ("audio.words", [{"word": "a", "start": 0.0}]),
            ("audio.start", None),
            ("audio.words", [{"word": "cat", "start": 0.02}]),
        ]
        events, _ = await (await begin(opened)).utterance("A cat.")
        assert "audio.words" not in kinds(events)


async def test_words_of_a_stream_come_from_the_aligner(start: Start) -> None:
    running = await start(ALIGNED, ALIGNS)
    async with open_socket(running, PATH) as opened:
        events, _ = await (await begin(opened, timestamps=True)).utterance("A cat.")
        words = [{"word": "a", "start": 0.02, "end": 0.1}, {"word": "cat", "start": 0.16, "end": 0.22}]
        assert [event["words"] for event in events if event["type"] == "audio.words"] == [words]
        await (await begin(opened)).utterance("A cat.")
    asked = [json.loads(request["options"]).get("words") for request in running.behind.requests]
    assert asked == ["aligned", None]


@pytest.mark.parametrize("is_written", [False, True])
async def test_cancelled_utterance_stops_on_the_server_and_the_next_one_follows(start: Start, is_written: bool) -> None:
    running = await start(
        lambda request: SPOKEN if request["text"] == b"A dog." else [SPOKEN[0], Until(asyncio.Event())]
    )
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write("A cat. And a")
        if is_written:
            await writer.send("input.done")
        await writer.until("audio.start")
        heard = await writer.next()
        for _ in range(3):  # only the first has an effect
            await writer.send("input.cancel")
        events, _ = await writer.until("session.done")
        done, over = events
        assert (done["type"], done["total_bytes"], done["error"]) == ("audio.done", len(heard), True)
        assert (over["utterance_index"], over["finish_reason"]) == (0, "cancelled")
        await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
        assert running.left() == {"failed": 0, "cancelled": 1}
        assert kinds((await writer.utterance("A dog."))[0]) == ["audio.start", "audio.done", "session.done"]
    async with running.http() as http:
        used = (await http.get("/v1/usage")).json()["output_audio_s"]
    assert used == pytest.approx((3840 + NUM_SAMPLES) / 16_000)  # the scripted server sends 16 kHz
    await running.idle()


async def test_utterance_may_be_cancelled_while_its_error_is_sent(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_error = StreamChannel.send_error
    cancel = StreamSession._cancel
    is_failed = asyncio.Event()
    is_cancelled = asyncio.Event()

    async def send_late(channel: StreamChannel, error: ApiError, **fields: Any) -> None:
        is_failed.set()
        await is_cancelled.wait()
        await send_error(channel, error, **fields)

    async def cancel_watched(session: StreamSession) -> None:
        try:
            await cancel(session)
        finally:
            is_cancelled.set()

    monkeypatch.setattr(StreamChannel, "send_error", send_late)
    monkeypatch.setattr(StreamSession, "_cancel", cancel_watched)
    running = await start(lambda request: SPOKEN if request["text"] == b"A dog." else [ErrorText("bad")])
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write("A cat.")
        await writer.send("input.done")
        await asyncio.wait_for(is_failed.wait(), PATIENCE_S)
        await writer.send("input.cancel")
        assert kinds((await writer.until("session.done"))[0]) == ["error", "session.done"]
        assert kinds((await writer.utterance("A dog."))[0]) == ["audio.start", "audio.done", "session.done"]
    await running.idle()


async def test_utterance_may_be_cancelled_at_once_and_silence_too(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.send("input.cancel")  # no answer
        await writer.write("A cat.")
        await writer.send("input.cancel")
        events, sound = await writer.until("session.done")
        assert (kinds(events), events[-1]["finish_reason"], sound) == (["session.done"], "cancelled", b"")
        await writer.send("input.cancel")
        assert kinds((await writer.utterance("A cat."))[0]) == ["audio.start", "audio.done", "session.done"]
    await running.idle()


# Fields of vLLM-Omni's session.config, with the values that its own client sends or a careful one would.
VLLM_OMNIS: dict[str, Any] = {
    "model": "tts-1",
    "voice": "alloy",
    "task_type": "CustomVoice",
    "language": "English",
    "speed": 1.0,
    "max_new_tokens": 2048,
    "split_granularity": "clause",
    "initial_codec_chunk_frames": 4,
    "x_vector_only_mode": False,
    "stream_audio": False,
    "response_format": "pcm",
}


async def test_unsupported_stream_fields_are_ignored_and_reported(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened, **VLLM_OMNIS)
        await writer.send("input.text", text="A cat.", utterance_id="u1")
        await writer.send("input.done", utterance_id="u1")
        events, sound = await writer.until("session.done")
        assert kinds(events) == ["audio.start", "audio.done", "session.done"]
        named = ["split_granularity", "stream_audio"]
        assert [name for name in events[0]["stretto_ignored"] if name in named] == named
        assert sound
        begun = (await (await begin(opened)).utterance("A cat."))[0][0]
        assert "stretto_ignored" not in begun
    await running.idle()


async def test_speech_stream_holds_the_configured_recording(start: Start) -> None:
    running = await start(profile=CLONES)
    async with open_socket(running, PATH) as opened:
        recording = base64.b64encode(RECORDING).decode()
        await (await begin(opened, ref_audio=recording)).send("input.done")
        assert json.loads(await opened.recv())["type"] == "session.done"  # after that
        assert running.app.state.gateway.sessions.held.num_bytes == len(recording)
    await running.idle()


async def test_stream_options_are_held_until_replaced(start: Start) -> None:
    running = await start()
    held = running.app.state.gateway.sessions.held
    async with open_socket(running, PATH) as opened:
        for config in ({"text": "a" * 9000}, {"text": "a" * 8000}, {}):
            writer = await begin(opened, **config)
            await writer.send("input.done")
            assert (await writer.next())["type"] == "session.done"  # after that
            assert held.num_bytes == held_bytes(config)
        await begin(opened, text="a" * 9000)
    await running.idle()


async def test_stream_accepts_one_utterance_at_a_time(start: Start) -> None:
    go = asyncio.Event()
    running = await start([SPOKEN[0], Until(go), *SPOKEN[1:]])
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write("A cat.")
        await writer.send("session.config")
        await writer.send("input.done")
        await writer.write("A dog.")
        codes = [(await writer.until("error"))[0][-1]["error"]["code"] for _ in range(2)]
        assert codes == ["utterance_in_progress"] * 2
        go.set()
        await writer.until("session.done")
    assert [request["text"] for request in running.behind.requests] == [b"A cat."]


async def test_overlong_streamed_text_is_refused_and_its_rest_dropped(start: Start) -> None:
    running = await start(limits=Limits(max_input_chars=10, drain_s=1))
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        events, _ = await writer.utterance("A cat. ", "Or", "a dog", ".")
        error = events[kinds(events).index("error")]["error"]
        assert (error["param"], error["message"].partition(", got")[2]) == ("text", " 14 characters")
        assert kinds(events)[-1] == "session.done"
        assert kinds((await writer.utterance("A cat."))[0]) == ["audio.start", "audio.done", "session.done"]
    assert not any(b"." in request["text"][6:] for request in running.behind.requests)
    await running.idle()


@pytest.mark.parametrize(
    ("steps", "code", "told"),
    [
        ([ErrorText("invalid request: text: expected words, got '!'")], "invalid_value", ["error"]),
        ([Chunk(0, None, is_final=True, is_last=True)], "no_audio", ["error"]),
        (
            [SPOKEN[0], Abort(grpc.StatusCode.UNAVAILABLE, "gone")],
            "unavailable",
            ["audio.start", "error", "audio.done"],
        ),
    ],
)
async def test_speech_stream_error_ends_only_one_utterance(
    start: Start, steps: list[Step], code: str, told: list[str]
) -> None:
    running = await start(lambda request: steps if request["text"] == b"!" else SPOKEN)
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        events, _ = await writer.utterance("!")
        assert kinds(events) == [*told, "session.done"]
        assert all(event["error"] for event in events if event["type"] == "audio.done")
        error = events[told.index("error")]["error"]
        assert (error["code"], error["param"]) == (code, "text" if code == "invalid_value" else None)
        assert events[told.index("error")]["utterance_index"] == 0
        assert kinds((await writer.utterance("A cat."))[0])[0] == "audio.start"


async def test_speech_stream_holds_its_slot_for_the_whole_utterance(start: Start) -> None:
    running = await start(limits=Limits(max_active=2, max_waiting=1, drain_s=1))
    async with open_socket(running, PATH) as first, open_socket(running, PATH) as second:
        writers = [await begin(first), await begin(second)]
        assert await running.metric("gateway_active") == 0
        await writers[0].write("A cat")
        await running.until(gateway_active=1)
        await writers[1].write("A dog")  # alone a caller has half of the places, and of those that wait
        await running.until(gateway_waiting=1)
        await writers[0].send("input.done")
        await writers[0].until("session.done")
        await writers[1].send("input.done")
        assert kinds((await writers[1].until("session.done"))[0])[0] == "audio.start"
    await running.idle()


async def test_endless_text_times_out_and_frees_its_slot(start: Start) -> None:
    running = await start(limits=Limits(writing_s=0.3, drain_s=1))
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        writing = asyncio.ensure_future(write_on(writer))
        events, _ = await writer.until("error")
        error = events[-1]["error"]
        assert (error["param"], error["code"]) == ("text", "timeout")
        assert error["message"] == "text: expected the complete text within 0.3 s of its start, got only a part"
        await running.until(gateway_active=0)
        writing.cancel()
        await writer.send("input.done")
        await writer.until("session.done")
        async with asyncio.timeout(PATIENCE_S):  # on a busy machine, a short text may take longer than it may
            while kinds((await writer.utterance("A cat."))[0]) != ["audio.start", "audio.done", "session.done"]:
                pass
    await running.idle()


async def write_on(writer: Writer) -> None:
    """Send one sentence after another."""
    while True:
        await writer.write("A cat. ")
        await asyncio.sleep(0.05)


async def test_client_disconnect_cancels_the_request(start: Start) -> None:
    running = await start([SPOKEN[0], Until(asyncio.Event())])
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write("A cat. And a")
        await writer.until("audio.start")
    await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
    await running.idle()
    assert await running.metric("audio_left_total") == 1


@pytest.mark.parametrize(
    ("limits", "has_begun"), [(Limits(stall_s=0.2, drain_s=1), True), (Limits(idle_s=0.2, drain_s=1), False)]
)
async def test_idle_stream_writer_is_disconnected(start: Start, limits: Limits, has_begun: bool) -> None:
    running = await start(limits=limits)
    async with open_socket(running, PATH) as opened:
        if has_begun:
            await (await begin(opened)).write("A cat")
        assert await closed(opened) == (1000, "nothing was received for 0.2 s")
    await running.idle()


@pytest.mark.slow
async def test_slow_websocket_reader_applies_backpressure(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLOSE_S", 0.1)
    running = await start([Chunk(0, 1_000_000, is_16_bit=True)] * 100, limits=Limits(stall_s=0.5, drain_s=1))
    async with open_socket(running, PATH, compression=None, close_timeout=0.1) as opened:
        writer = await begin(opened)
        opened.transport.pause_reading()
        await writer.write("A cat.")
        await writer.send("input.done")
        await running.until(audio_left_total=1)
        assert running.behind.num_played < 50, "it was not held back"
    assert running.left() == {"failed": 0, "cancelled": 1}
    await running.idle()


async def test_speech_in_progress_completes_before_shutdown(start: Start) -> None:
    go = asyncio.Event()
    running = await start([SPOKEN[0], Until(go), *SPOKEN[1:]], limits=Limits(drain_s=60))
    async with open_socket(running, PATH) as opened:
        writer = await begin(opened)
        await writer.write("A cat.")
        await writer.send("input.done")
        await writer.until("audio.start")
        running.server.should_exit = True
        await until_async(lambda: running.app.state.gateway.sessions.draining.is_set())
        go.set()
        events, _ = await writer.until("session.done")
        assert kinds(events) == ["audio.done", "session.done"]
        assert await closed(opened) == (1012, "the gateway is shutting down")


FIELDS = st.dictionaries(st.sampled_from(["text", "voice", "response_format", "seed", "model", "x"]), JSON, max_size=2)
EVENTS = st.tuples(st.sampled_from(KINDS[:4]), FIELDS).map(lambda parts: json.dumps({"type": parts[0]} | parts[1]))
MESSAGES = st.one_of(
    EVENTS,
    st.just(json.dumps({"type": "input.text", "text": "A cat. "})),
    JSON.map(json.dumps),
    st.binary(max_size=50),
    st.sampled_from(["[" * 100_000, "1" * 10_000, '{"type": NaN}', '{"type": "\\ud800"}', ""]),
)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [60, *by_night(200)])
def test_stream_messages_cause_no_internal_errors_or_leaks(examples: int, caplog: pytest.LogCaptureFixture) -> None:
    seen = set[str]()
    with asyncio.Runner() as runner:
        behind = FakeServer(lambda _: SPOKEN)
        gateway = runner.run(open_gateway(behind))

        @given(st.booleans(), st.lists(MESSAGES, min_size=1, max_size=6))
        @settings(max_examples=examples, deadline=None)
        def talk(is_configured: bool, messages: list[str | bytes]) -> None:
            begun: list[str | bytes] = [json.dumps({"type": "session.config"})] if is_configured else []
            line = Line([*begun, *messages, "the last"])
            scope = {"type": "websocket", "path": "/", "headers": [], "state": {"owner": "everybody"}}
            opened = WebSocket(scope, line.receive, line.send)
            opened.client_state = opened.application_state = type(opened.client_state).CONNECTED
            runner.run(run(gateway, opened))
            assert "'the last'" in line.said[-1]["message"] or any("'the last'" in str(each) for each in line.said)
            assert not gateway.sessions.held.num_bytes
            assert not gateway.admission.num_active
            seen.update(each["type"] for each in line.said)

        talk()
        runner.run(gateway.close())
        runner.run(behind.stop())
    assert {"error", "session.done"} <= seen
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def open_gateway(behind: FakeServer) -> Gateway:
    """Return a gateway in front of a fake server."""
    return Gateway(GatewayConfig(await behind.start(), limits=Limits()))
