"""`/v1/audio/speech` through OpenAI's client: formats, streaming, events, refusals and failures."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import av
import grpc
import httpx
import numpy as np
import openai
import pytest

from stretto_client import RequestRefused, TimedOut
from stretto_gateway.answers import from_client_error
from stretto_gateway.config import Limits
from stretto_gateway.encoding import CODECS, MEDIA_TYPES, RAW, SYNTHETIC, TAGGED, default_rate, make_encoder, wav_header
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech import encoded_parts
from tests.client.fake_server import PROFILE, Abort, Chunk, ErrorText, Until
from tests.gateway.conftest import ALIGNED, ALIGNS, NUM_SAMPLES, SPOKEN, Running, Start, sse_events
from tests.gateway.realtime.test_bounds import open_socket
from tests.gateway.test_speech_stream import begin
from tests.patience import PATIENCE_S, until_async
from tests.tiers import by_night

REQUEST: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "A cat."}
SLOWLY = REQUEST | {"response_format": "pcm"}


def num_samples(data: bytes, name: str) -> int:
    """Return the number of samples in a complete or truncated file of this format; at 24 kHz, but for G.711."""
    return len(data) // (2 if name == "pcm" else 1) if name in RAW else len(decoded(data, name))


def decoded(data: bytes, name: str) -> np.ndarray:
    """Return the samples in a file, int16 [n]."""
    with av.open(io.BytesIO(data), format={"opus": "ogg"}.get(name, name)) as container:
        resampler = av.AudioResampler("s16", "mono", 24_000)
        frames = [resampled for frame in container.decode(audio=0) for resampled in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames])


@pytest.mark.parametrize("name", MEDIA_TYPES)
async def test_first_chunk_is_decodable_before_the_second_in_every_format(start: Start, name: str) -> None:
    heard = asyncio.Event()
    running = await start([SPOKEN[0], Until(heard), *SPOKEN[1:]])
    async with running.openai().audio.speech.with_streaming_response.create(response_format=name, **REQUEST) as answer:
        assert answer.headers["content-type"] == MEDIA_TYPES[name]
        assert answer.headers["x-request-id"].startswith("req_")
        parts = answer.iter_bytes()
        data = await anext(parts)
        if name in ("mp3", "opus", "aac"):  # sent in two pieces
            data += await anext(parts)
        assert 0 < num_samples(data, name) <= 3840
        heard.set()
        data += b"".join([part async for part in parts])
    assert num_samples(data, name) == pytest.approx(NUM_SAMPLES, abs=2500)
    output = {"encoding": "pcm_s16le", "sample_rate": default_rate(name)}
    options = json.loads(running.behind.requests[0]["options"])
    assert options == {"voice": "slt", "seed": options["seed"], "output": output}


@pytest.mark.parametrize("form", ["wav", "mp3", "sse"])
async def test_header_names_the_marker_of_marked_audio(start: Start, form: str) -> None:
    given = {"stream_format": "sse"} if form == "sse" else {"response_format": form}
    for marker in ("", "perth"):
        steps = [replace(each, more={"marker": marker} if marker else {}) for each in SPOKEN]
        running = await start(steps)
        async with running.openai().audio.speech.with_streaming_response.create(**REQUEST, extra_body=given) as answer:
            assert await answer.read()
            assert answer.headers.get("stretto-marker", "") == marker


def tags(data: bytes, name: str) -> dict[str, str]:
    """Return the tags of a file, from its container or its only stream."""
    with av.open(io.BytesIO(data), format={"opus": "ogg"}.get(name, name)) as container:
        return container.metadata | container.streams[0].metadata


@pytest.mark.parametrize("name", TAGGED)
async def test_first_part_of_a_file_says_that_a_model_generated_it(start: Start, name: str) -> None:
    heard = asyncio.Event()
    running = await start([SPOKEN[0], Until(heard), *SPOKEN[1:]])
    async with running.openai().audio.speech.with_streaming_response.create(response_format=name, **REQUEST) as answer:
        parts = answer.iter_bytes()
        data = await anext(parts) + await anext(parts) if name == "mp3" else await anext(parts)
        assert SYNTHETIC.items() <= tags(data, name).items()
        heard.set()


@pytest.mark.parametrize("given", [{}, {"AIGC": '{"Label": "1"}'}])
async def test_operator_chooses_the_tags_of_files(start: Start, given: dict[str, str]) -> None:
    running = await start(audio_tags=given)
    found = tags((await running.openai().audio.speech.create(response_format="mp3", **REQUEST)).content, "mp3")
    assert {key: value for key, value in found.items() if key != "encoder"} == given


@pytest.mark.parametrize("name", CODECS)
async def test_sending_first_samples_early_does_not_change_the_audio(name: str) -> None:
    pcm = np.random.default_rng(0).integers(-3000, 3000, 24_000).astype(np.int16)
    chunks = np.split(pcm, [4800, 9600])
    whole, encoder = make_encoder(name, 24_000), make_encoder(name, 24_000)
    first = [part async for part in encoded_parts(encoder, chunks[0])]
    others = [part for chunk in chunks[1:] async for part in encoded_parts(encoder, chunk)]
    assert (len(first), len(others)) == (2, 2)
    data = b"".join([*first, *others, encoder.close()])
    plain = b"".join([*map(whole.encode, chunks), whole.close()])
    assert np.array_equal(decoded(data, name), decoded(plain, name))
    assert name != "flac" or np.array_equal(decoded(data, name), pcm)
    assert len(data) == len(plain)
    assert [part async for part in encoded_parts(encoder, None)] == []


async def test_pcm_is_passed_through_and_wav_adds_a_header(start: Start) -> None:
    client = (await start()).openai()
    pcm = (await client.audio.speech.create(response_format="pcm", **REQUEST)).content
    wav = (await client.audio.speech.create(response_format="wav", **REQUEST)).content
    assert pcm == b"\x00\x20" * NUM_SAMPLES
    assert wav == wav_header(24_000) + pcm


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"input": "**A** [cat](http://x.y) 😀"}, ["A cat"]),
        ({"input": "# A cat", "markup": "markdown"}, ["A cat."]),
        ({"input": "<speak>A <break time='500ms'/><sub alias='cat'>c</sub></speak>"}, ["A", "cat"]),
        ({"input": "**A** <b>", "markup": "none"}, ["**A** <b>"]),
        ({"input": "2 * 3 * 4 < 25"}, ["2 * 3 * 4 < 25"]),
    ],
)
async def test_markup_is_not_read_aloud(start: Start, given: dict[str, Any], sent: list[str]) -> None:
    running = await start()
    async with running.http() as http:
        for fields in ({}, {"stream_format": "sse"}):
            answer = await http.post("/v1/audio/speech", json={"response_format": "pcm"} | given | fields)
            assert answer.status_code == 200, answer.text
            if not fields:
                silence = 8_000 if len(sent) == 2 else 0
                assert len(answer.content) == 2 * (NUM_SAMPLES * len(sent) + silence)
        batch = {"items": [given], "response_format": "pcm", "check": "off"}
        answer = await http.post("/v1/audio/speech/batch", json=batch)
        assert answer.json()["succeeded"] == 1
    assert [request["text"].decode() for request in running.behind.requests] == 3 * sent


async def test_sse_events_contain_audio_words_and_usage(start: Start) -> None:
    running = await start()
    request = REQUEST | {"response_format": "pcm", "stream_format": "sse", "timestamps": True}
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json=request)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = sse_events(answer.text)
    sound = b"".join(base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta")
    assert len(sound) == 2 * NUM_SAMPLES
    words = [word for event in events if event["type"] == "speech.audio.words" for word in event["words"]]
    assert words == [{"word": "a", "start": 0.0}, {"word": "cat", "start": 0.04}]
    assert events[-1] == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 0, "output_tokens": 4, "total_tokens": 4},
        "faults": [{"fault": "abrupt_end", "start_s": 0.84}],  # the level is constant
    }


TOLD = {"report": {"num_prompt_rows": 9, "num_text_tokens": 2, "num_frames": 4}}
TOKENS = {"input": "9", "output": "6", "total": "15"}
WHOLE = REQUEST | {"stream": False}


def tokens(answer: httpx.Response) -> dict[str, str]:
    """Return the token counts in a response's headers, as llm-d's router reads them."""
    names = {name: f"x-vllm-omni-{name}-tokens" for name in TOKENS}
    return {name: answer.headers[header] for name, header in names.items() if header in answer.headers}


@pytest.mark.parametrize("name", ["wav", "mp3"])
async def test_stream_false_sends_the_complete_file_with_its_length_and_tokens(start: Start, name: str) -> None:
    running = await start([*SPOKEN[:2], replace(SPOKEN[2], more=TOLD)])
    async with running.http() as http:
        whole = await http.post("/v1/audio/speech", json=WHOLE | {"response_format": name, "stream_format": None})
        outcome = (await http.get(f"/v1/audio/speech/{whole.headers['x-request-id']}")).json()
        changes = ({}, {"stream": True}, {"stream": False, "stream_format": "audio"})
        streamed = [
            await http.post("/v1/audio/speech", json=REQUEST | {"response_format": name} | change) for change in changes
        ]
        events = await http.post("/v1/audio/speech", json=WHOLE | {"stream_format": "sse"})
    assert tokens(whole) == TOKENS
    assert int(whole.headers["content-length"]) == len(whole.content) == outcome["bytes"]
    assert (outcome["status"], whole.headers["content-type"]) == ("completed", MEDIA_TYPES[name])
    assert {name: str(count) for name, count in sse_events(events.text)[-1]["usage"].items()} == {
        f"{name}_tokens": count for name, count in TOKENS.items()
    }
    for answer in streamed:
        assert (tokens(answer), answer.headers.get("content-length")) == ({}, None)
        header = wav_header(24_000, 2 * NUM_SAMPLES) if name == "wav" else b""
        assert whole.content == header + answer.content[len(header) :]


@pytest.mark.parametrize(
    ("limits", "status", "param"),
    [
        (Limits(max_batch_bytes=2 * NUM_SAMPLES, drain_s=1), 200, None),
        (Limits(max_batch_bytes=2 * NUM_SAMPLES - 1, drain_s=1), 413, "stream"),
        (Limits(max_held_bytes=2 * NUM_SAMPLES, drain_s=1), 503, None),
    ],
    ids=["within", "too large", "too much memory"],
)
async def test_complete_file_is_limited(start: Start, limits: Limits, status: int, param: str | None) -> None:
    running = await start(limits=limits)
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json=WHOLE | {"response_format": "pcm"})
    assert answer.status_code == status
    if status != 200:
        error = answer.json()["error"]
        assert (error["param"], tokens(answer)) == (param, {})
        assert status != 413 or f"more than {2 * NUM_SAMPLES - 1} bytes of audio, got false" in error["message"]
    await running.idle()


async def test_failure_of_a_complete_file_is_the_whole_answer(start: Start) -> None:
    running = await start([SPOKEN[0], Abort(grpc.StatusCode.UNAVAILABLE, "gone")])
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json=WHOLE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_speed_scales_durations_and_times_and_1_is_bit_identical(start: Start) -> None:
    running = await start()
    async with running.http() as http:
        as_ever = (await http.post("/v1/audio/speech", json=REQUEST | {"response_format": "pcm"})).content
        plain = await http.post("/v1/audio/speech", json=REQUEST | {"response_format": "pcm", "speed": 1})
        assert (plain.content, "stretto-ignored" in plain.headers) == (as_ever, False)
        fast = await http.post("/v1/audio/speech", json=REQUEST | {"response_format": "pcm", "speed": 2})
        assert (len(fast.content), "stretto-ignored" in fast.headers) == (NUM_SAMPLES, False)
        items = {"items": [{"input": "a"}], "response_format": "wav", "speed": 0.5}
        (result,) = (await http.post("/v1/audio/speech/batch", json=items)).json()["results"]
        assert len(base64.b64decode(result["audio_data"])) == 44 + 4 * NUM_SAMPLES
        request = REQUEST | {"response_format": "mp3", "stream_format": "sse", "timestamps": True, "speed": 2}
        events = sse_events((await http.post("/v1/audio/speech", json=request)).text)
    words = [word for event in events if event["type"] == "speech.audio.words" for word in event["words"]]
    assert words == [{"word": "a", "start": 0.0}, {"word": "cat", "start": 0.02}]
    sound = b"".join(base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta")
    assert num_samples(sound, "mp3") == pytest.approx(NUM_SAMPLES / 2, abs=2500)


SLOW = '<speak>One. <prosody rate="50%">Two.</prosody> <break time="80ms"/>Three.</speak>'


@pytest.mark.slow
@pytest.mark.parametrize("response_format", ["pcm", "flac"])
async def test_part_of_a_text_at_another_rate_does_not_depend_on_chunks(start: Start, response_format: str) -> None:
    """Only that part is stretched, and the words of later parts have the times of the file."""
    noise = np.random.default_rng(1).normal(0, 3000, 13_440)
    files, words = list[bytes](), list[Any]()
    for sizes in ([13_440], [960] * 14, [777, 12_663]):
        ends = np.cumsum([0, *sizes])
        chunks = [
            Chunk(
                index,
                size,
                is_16_bit=True,
                pcm=noise[end : end + size].astype(np.int16),
                words=("a",) if not index else (),
            )
            for index, (size, end) in enumerate(zip(sizes, ends, strict=False))
        ]
        running = await start([*chunks[:-1], replace(chunks[-1], is_final=True, is_last=True)])
        body = {"input": SLOW, "response_format": response_format}
        async with running.http() as http:
            answer = await http.post("/v1/audio/speech", json=body)
            assert (answer.status_code, ResponseHeader.IGNORED in answer.headers) == (200, False)
            files.append(answer.content)
        words.append(await timed_words(running, input=SLOW))
        assert [each["text"].decode() for each in running.behind.requests][:3] == ["One.", "Two.", "Three."]
    assert len(set(files)) == 1
    if response_format == "pcm":
        assert len(files[0]) // 2 == 13_440 + 2 * 13_440 + 1280 + 13_440
    length = 13_440 / 16_000  # the rate of the fake server's events
    assert [word["start"] for word in words[0]] == pytest.approx([0, length, 3 * length + 0.08], abs=1e-6)


async def test_rate_multiplies_the_speed_within_its_limits(start: Start) -> None:
    running = await start(SPOKEN)
    text = '<speak><prosody rate="25%">One.</prosody><prosody rate="4">Two.</prosody></speak>'
    sizes = list[int]()
    for speed in (1, 0.5, 2):
        body = {"input": text, "response_format": "pcm", "speed": speed}
        async with running.http() as http:
            sizes.append(len((await http.post("/v1/audio/speech", json=body)).content) // 2)
    whole = NUM_SAMPLES
    assert sizes == [4 * whole + whole // 4, 4 * whole + whole // 2, 2 * whole + whole // 4]


NOTED = {
    "*Sighs* Hello (clears throat), [laughs] there. **Bold**": "input.Sighs, input.clears?throat",
    "Ask 李明 and Ελένη.": "input.transliterated.%E6%9D%8E%E6%98%8E, "
    "input.transliterated.%CE%95%CE%BB%CE%AD%CE%BD%CE%B7",
    "<speak>Hello 王.</speak>": "input.transliterated.%E7%8E%8B",
    "<think>王</think> Hello *Ελένη*": "input.think, input.transliterated.%CE%95%CE%BB%CE%AD%CE%BD%CE%B7",
    "¯\\_(ツ)_/¯ Caf\u00e9 “Noir”, *very* short (see page 5).": None,
}


@pytest.mark.parametrize("text", NOTED)
@pytest.mark.parametrize("stream_format", ["audio", *by_night("sse")])
async def test_directions_and_transliterated_words_are_listed(start: Start, text: str, stream_format: str) -> None:
    running = await start(SPOKEN, profile=PROFILE | {"options": ["transliterate"], "tags": ["[laughs]"]})
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json={"input": text, "stream_format": stream_format})
    assert answer.headers.get(ResponseHeader.IGNORED) == NOTED[text]


async def test_speech_at_another_speed_is_streamed(start: Start) -> None:
    heard = asyncio.Event()
    running = await start([SPOKEN[0], SPOKEN[1], Until(heard), *SPOKEN[2:]])
    body = REQUEST | {"response_format": "pcm", "speed": 1.5}
    async with running.http() as http, http.stream("POST", "/v1/audio/speech", json=body) as answer:
        parts = answer.aiter_bytes()
        data = await anext(parts)
        heard.set()
        data += b"".join([part async for part in parts])
    assert len(data) == 2 * round(NUM_SAMPLES / 1.5)


async def test_gateway_splits_long_text_into_clauses(start: Start) -> None:
    running = await start()
    text = " ".join(["This sentence has exactly fifty characters, I say."] * 4)
    answer = await running.openai().audio.speech.create(response_format="pcm", **REQUEST | {"input": text})
    assert len(answer.content) == 2 * 2 * NUM_SAMPLES
    assert len(running.behind.requests) == 2


@pytest.mark.parametrize("change", [{}, {"stream_format": "sse"}])
async def test_long_text_that_is_mostly_in_an_unsupported_script_is_a_400(start: Start, change: dict[str, Any]) -> None:
    refusal = "invalid request: text: expected English in Latin script, got Chinese characters in '你好'"
    running = await start(lambda request: [ErrorText(refusal)] if "你好".encode() in request["text"] else SPOKEN)
    text = " ".join(["This sentence has exactly fifty characters, I say."] * 4) + " 你好" * 40
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json={"input": text} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert "Chinese characters" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["pcm", "mp3"])
async def test_speech_response_skips_chunks_without_samples(start: Start, name: str) -> None:
    running = await start([Chunk(0, 0, is_16_bit=True), *SPOKEN])
    answer = await running.openai().audio.speech.create(response_format=name, **REQUEST)
    assert num_samples(answer.content, name) == pytest.approx(NUM_SAMPLES, abs=2500)


def test_client_library_errors_map_to_http_statuses() -> None:
    """A server message without a field name is unchanged."""
    late = from_client_error(TimedOut("the utterance was not complete after 60 s"), {})
    assert (late.status_code, late.code) == (504, "timeout")
    plain = from_client_error(RequestRefused("Nothing can be said."), {})
    assert (plain.status_code, plain.param, plain.message) == (400, None, "Nothing can be said.")


async def read_into(parts: list[bytes], asked: AbstractAsyncContextManager[httpx.Response]) -> None:
    """Read a response part by part into `parts`, which keeps everything before a failure."""
    async with asked as answer:
        async for part in answer.aiter_bytes():
            parts.append(part)


async def test_failures_after_the_first_audio_end_the_response_incomplete(start: Start) -> None:
    running = await start([SPOKEN[0], Abort(grpc.StatusCode.UNAVAILABLE, "gone")])
    with pytest.raises(openai.APIConnectionError):
        await running.openai().audio.speech.create(response_format="pcm", **REQUEST)
    came = list[bytes]()
    async with running.http() as http:
        asked = http.stream("POST", "/v1/audio/speech", json=REQUEST | {"stream_format": "sse"})
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await read_into(came, asked)
    first, *_, last = b"".join(came).decode().strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["type"] == "speech.audio.delta"
    assert last.startswith("event: error\n")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "unavailable"


@pytest.mark.parametrize("change", [{}, {"stream_format": "sse"}, {"response_format": "mp3"}])
async def test_client_disconnect_cancels_the_request(start: Start, change: dict[str, Any]) -> None:
    running = await start([SPOKEN[0], Until(asyncio.Event())])
    async with running.http() as http, http.stream("POST", "/v1/audio/speech", json=REQUEST | change) as answer:
        await anext(answer.aiter_bytes())
    await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
    await running.until(gateway_active=0)
    assert await running.metric("audio_left_total") == 1


async def test_disconnect_before_the_first_audio_cancels_the_request(start: Start) -> None:
    running = await start([Until(asyncio.Event())])
    asking = asyncio.ensure_future(running.openai().audio.speech.create(**REQUEST))
    await until_async(lambda: running.behind.requests)
    asking.cancel()
    await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)


async def test_excess_requests_get_429_and_others_wait_in_line(start: Start) -> None:
    go = asyncio.Event()
    running = await start([Until(go), *SPOKEN], limits=Limits(max_active=1, max_waiting=4, drain_s=1))
    client = running.openai()
    asked = list[asyncio.Future[Any]]()
    for waiting in range(3):
        asked.append(asyncio.ensure_future(client.audio.speech.create(**REQUEST)))
        async with asyncio.timeout(PATIENCE_S):
            while (await running.metric("gateway_active"), await running.metric("gateway_waiting")) != (1, waiting):
                await asyncio.sleep(0.01)
    with pytest.raises(openai.RateLimitError) as raised:
        await client.audio.speech.create(**REQUEST)
    assert int(raised.value.response.headers["retry-after"]) > 0
    asked[1].cancel()
    await running.until(gateway_waiting=1)
    go.set()
    await asyncio.gather(asked[0], asked[2])
    assert len(running.behind.requests) == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", ["A cat.", "A cat sat on the mat. " * 50], ids=["short", "long"])
async def test_unread_responses_generate_little_audio(start: Start, words: str) -> None:
    chunk = Chunk(0, 9_600, is_16_bit=True)  # 0.4 s, 19 kB
    running = await start([chunk] * 1_000, limits=Limits(stall_s=0.5, drain_s=1))
    body = json.dumps(REQUEST | {"response_format": "pcm", "input": words}).encode()
    head = b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        made.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
        made.sendall(head % len(body) + body)
        await running.until(audio_left_total=1)
    assert 0 < running.behind.num_played <= 60, "24 s of sound; with the kernel's buffers it were 200"


async def test_slow_http_reader_receives_all_audio(start: Start) -> None:
    chunk = Chunk(0, 9_600, is_16_bit=True)
    running = await start([chunk] * 9 + [replace(chunk, is_final=True, is_last=True)])
    async with running.http() as http, http.stream("POST", "/v1/audio/speech", json=SLOWLY) as answer:
        parts = [part async for part in slowly(answer)]
    assert b"".join(parts) == b"\x00\x20" * 96_000


async def slowly(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Read a response's body in pieces of 4 KiB with pauses."""
    async for part in answer.aiter_bytes(4096):
        yield part
        await asyncio.sleep(0.002)


@pytest.mark.slow
async def test_stalled_reader_applies_backpressure_then_is_disconnected(start: Start) -> None:
    second = Chunk(0, 1_000_000, is_16_bit=True)
    running = await start([second] * 100, limits=Limits(stall_s=0.5, drain_s=1))
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = json.dumps(REQUEST | {"response_format": "pcm"}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    await reader.readline()
    await running.until(audio_left_total=1)
    assert running.behind.num_played < 50, "it was not held back"
    assert running.left() == {"failed": 0, "cancelled": 1}
    writer.close()


async def timed_words(running: Running, **more: Any) -> list[Any]:
    """Return the words in the events of a request with `timestamps`."""
    request = REQUEST | {"response_format": "pcm", "stream_format": "sse", "timestamps": True} | more
    async with running.http() as http:
        events = sse_events((await http.post("/v1/audio/speech", json=request)).text)
    return [word for event in events if event["type"] == "speech.audio.words" for word in event["words"]]


async def test_speech_word_timestamps_come_from_the_aligner(start: Start) -> None:
    running = await start(ALIGNED, ALIGNS)
    words = [{"word": "a", "start": 0.02, "end": 0.1}, {"word": "cat", "start": 0.16, "end": 0.22}]
    assert await timed_words(running) == words
    assert (await timed_words(running, speed=2))[1] == {"word": "cat", "start": 0.08, "end": 0.11}
    await timed_words(running, stream_format="audio", timestamps=False)
    asked = [json.loads(each["options"]).get("words") for each in running.behind.requests]
    assert asked == ["aligned", "aligned", None]


async def test_words_have_their_places_and_missing_ones_are_listed(start: Start) -> None:
    place = {"text_start": 9, "text_end": 14}
    words = [{"word": "It", "start_s": 0.0}, {"word": "$3.50", "start_s": 0.04} | place]
    report = {"finish_reason": "stop", "untimed_words": ["costs"]}
    running = await start([SPOKEN[0], replace(SPOKEN[-1], more={"words": words, "report": report})])
    request = REQUEST | {"input": "**It** costs $3.50.", "stream_format": "sse", "timestamps": True}
    async with running.http() as http:
        events = sse_events((await http.post("/v1/audio/speech", json=request | {"speed": 2})).text)
        items = {"items": [{"input": request["input"]}], "response_format": "pcm"}
        (result,) = (await http.post("/v1/audio/speech/batch", json=items)).json()["results"]
    async with open_socket(running, "/v1/audio/speech/stream") as opened:
        done, _ = await (await begin(opened)).utterance("It costs $3.50.")
    assert [word for event in events for word in event.get("words", ())][1:] == [
        {"word": "It", "start": 0.0},
        {"word": "$3.50", "start": 0.02, "text_start": 13, "text_end": 18},
    ]
    assert [each["untimed_words"] for each in (events[-1], result, done[-1])] == [["costs"]] * 3


async def test_words_not_aligned_in_time_are_omitted(start: Start) -> None:
    late = [ALIGNED[0], Chunk(1, None, aligned=(), is_final=True, is_last=True)]
    assert await timed_words(await start(late, ALIGNS)) == []


@pytest.mark.parametrize("profile", [PROFILE, PROFILE | {"options": ["words"]}, PROFILE | {"times_words": False}])
async def test_aligner_is_not_requested_if_unneeded_or_unavailable(start: Start, profile: dict[str, Any]) -> None:
    running = await start(profile=profile)
    await timed_words(running)
    assert "words" not in json.loads(running.behind.requests[0]["options"])
