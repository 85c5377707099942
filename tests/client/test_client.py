"""The client against a server that streams, stalls, fails and hangs up."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from stretto_client import (
    ClientError,
    GuidanceChange,
    RequestCancelled,
    RequestRefused,
    ServerFailed,
    ServerUnavailable,
    SpeechClient,
    TimedOut,
    Timeouts,
    Word,
)
from tests.client.conftest import Serve
from tests.client.fake_server import (
    CHECKED,
    PROFILE,
    REPORT,
    Abort,
    Chunk,
    EmptyFinal,
    ErrorText,
    Pause,
    Request,
    Step,
    Until,
)
from tests.patience import PATIENCE_S

UTTERANCE = [
    Chunk(0, None, text="k ae t"),
    Chunk(1, 640, words=("a", "cat"), guidance_changes=((0.04, False),)),
    Chunk(2, 1280, is_final=True, is_last=True),
]
ENDINGS = {
    "FINAL rides on the last chunk": UTTERANCE,
    "FINAL comes alone": [*UTTERANCE[:-1], Chunk(2, 1280, is_final=True), EmptyFinal()],
    "the stream just ends": [*UTTERANCE[:-1], Chunk(2, 1280, is_final=True)],
}


@pytest.mark.usefixtures("proxy_variables")
async def test_client_connects_directly_despite_proxy_variables(serve: Serve) -> None:
    _, client = await serve(UTTERANCE)
    assert await client.ready()
    assert (await client.profile()).family == "tiny"
    assert [event async for event in client.speak("a")][-1].is_final


async def test_16_bit_output_is_int16_and_encoding_merges_into_output_option(serve: Serve) -> None:
    server, client = await serve([Chunk(0, 640, is_final=True, is_last=True, is_16_bit=True)])
    stream = client.speak("a", encoding="pcm_s16le", output={"sample_rate": 8_000}, check="off")
    (event,) = [event async for event in stream]
    assert (event.pcm.dtype, event.pcm[0]) == (np.int16, 8192)
    assert json.loads(server.requests[0]["options"]) == {"output": {"sample_rate": 8_000, "encoding": "pcm_s16le"}}


async def test_client_event_codes_are_an_array(serve: Serve) -> None:
    _, client = await serve([Chunk(0, 640, codes=[[1, 2], [3, 4]]), Chunk(1, None, is_final=True, is_last=True)])
    events = [event async for event in client.speak("a", output={"codes": True})]
    assert events[0].codes is not None
    assert events[0].codes.tolist() == [[1, 2], [3, 4]]
    assert events[1].codes is None


@pytest.mark.parametrize(("signals", "is_abrupt"), [({}, True), ({"end_db": -1.0}, False)])
@pytest.mark.parametrize("form", ["short", "long", "streamed"])
async def test_signals_have_the_limits_of_the_profile(
    serve: Serve, form: str, signals: dict[str, float], is_abrupt: bool
) -> None:
    """The speech of the server has a constant level, also at its end."""
    server, client = await serve([Chunk(0, 1920, is_final=True, is_last=True)])
    server.profile = PROFILE | {"signals": signals}
    text = "a cat and a dog" if form != "long" else "a cat sat on the mat and a dog sat on the other"
    pieces = pieces_of(text) if form == "streamed" else text
    *_, last = [event async for event in client.speak(pieces)]
    assert ("abrupt_end" in [fault["fault"] for fault in last.report["faults"]]) == is_abrupt


async def pieces_of(text: str) -> AsyncIterator[str]:
    yield text


@pytest.mark.parametrize("ending", ENDINGS)
async def test_utterance_is_complete_for_every_stream_ending(serve: Serve, ending: str) -> None:
    _, client = await serve(ENDINGS[ending])
    events = [event async for event in client.speak("a cat")]
    assert [event.index for event in events] == [0, 1, 2]
    assert events[0].pcm is None
    assert events[0].text == "k ae t"
    assert events[1].words == (Word("a", 0.04), Word("cat", 0.04))
    assert [event.guidance_changes for event in events] == [(), (GuidanceChange(0.04, False),), ()]
    assert [len(event.pcm) for event in events[1:]] == [640, 1280]
    assert events[1].pcm.dtype == np.float32
    assert events[2].report == REPORT | CHECKED
    assert [event.is_final for event in events] == [False, False, True]


async def test_client_yields_chunks_as_they_arrive(serve: Serve) -> None:
    goes_on = asyncio.Event()
    _, client = await serve([Chunk(0), Until(goes_on), Chunk(1, is_final=True, is_last=True)])
    stream = client.speak("a")
    async with asyncio.timeout(PATIENCE_S):
        await anext(stream)
        goes_on.set()
        assert (await anext(stream)).is_final


async def test_client_sends_the_requested_inputs(serve: Serve, tmp_path: Path) -> None:
    server, client = await serve(UTTERANCE)
    pcm = np.zeros(9, np.float64)
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    turns = [{"role": "user", "audio": "pcm_in", "text": "What is this?"}]
    for send in (
        lambda: client.speak("é", voice="rms", seed=3, guidance_scale=2.0, audio={"top_k": 5}),
        lambda: client.speak("b", check="off"),
        lambda: client.speak("c", text={"max_rows": 9}, check="off"),
        lambda: client.transcribe((pcm, 8_000)),
        lambda: client.transcribe(tmp_path / "a.wav"),
        lambda: client.converse(turns, (pcm, 8_000), task="understand", seed=3, audio={"top_k": 5}),
        lambda: client.converse(turns, tmp_path / "a.wav", (pcm, 8_000), b"another file"),
    ):
        async for _ in send():
            pass
    first, second, in_text, third, fourth, fifth, sixth = server.requests
    assert first["text"] == "é".encode()
    assert json.loads(first["options"]) == {"voice": "rms", "seed": 3, "guidance_scale": 2.0, "audio": {"top_k": 5}}
    assert second == {"model": "speech", "text": b"b", "task": b"tts"}
    assert (in_text["text"], json.loads(in_text["options"])) == (b"c", {"text": {"max_rows": 9}})
    assert third["pcm_in"].dtype == np.float32
    assert (third["sample_rate"], third["task"]) == (8_000, b"asr")
    assert fourth == {"model": "speech", "audio": b"RIFF\0", "task": b"asr"}
    assert (json.loads(fifth["messages"]), fifth["task"], len(fifth["pcm_in"])) == (turns, b"understand", 9)
    assert json.loads(fifth["options"]) == {"seed": 3, "audio": {"top_k": 5}}
    assert sixth["audio"].tolist() == [b"RIFF\0", b"another file"]
    assert (len(sixth["pcm_in"]), sixth["sample_rate"]) == (9, 8_000)
    assert not any("triton_grpc_error" in metadata for metadata in server.metadata)  # Triton 2.51 crashes on it


async def test_conversation_accepts_one_sample_array(serve: Serve) -> None:
    server, client = await serve(UTTERANCE)
    with pytest.raises(ValueError, match="files and at most one array of samples, got 2"):
        client.converse([{"role": "user", "audio": "pcm_in"}], (np.zeros(9), 8_000), (np.zeros(9), 8_000))
    assert not server.requests


@pytest.mark.parametrize("pcm", [np.zeros((2, 80), np.float32), np.zeros(80, np.int16)], ids=["stereo", "integers"])
async def test_samples_other_than_mono_floating_point_are_refused(serve: Serve, pcm: NDArray[Any]) -> None:
    server, client = await serve([])
    with pytest.raises(ValueError, match="expected mono floating-point samples"):
        await anext(client.transcribe((pcm, 8000)))
    assert not server.requests


async def test_concurrent_utterances_do_not_mix(serve: Serve) -> None:
    def count_letters(request: Request) -> list[Step]:
        return [Chunk(0, len(request["text"])), Pause(0.05), Chunk(1, 1, is_final=True, is_last=True)]

    _, client = await serve(count_letters)

    async def speak(length: int) -> int:
        return sum([len(event.pcm) async for event in client.speak("a" * length)])

    assert await asyncio.gather(*map(speak, range(1, 17))) == [length + 1 for length in range(1, 17)]


FAILURES: dict[str, tuple[list[Step], type[ClientError], str]] = {
    "refused": ([Abort(grpc.StatusCode.INVALID_ARGUMENT, "text: expected")], RequestRefused, "text: expected"),
    "draining": ([Abort(grpc.StatusCode.UNAVAILABLE, "draining")], ServerUnavailable, "^draining"),
    "failed": ([Chunk(), Abort(grpc.StatusCode.INTERNAL, "decoder died")], ServerFailed, "decoder died"),
    "given up by the server": ([Abort(grpc.StatusCode.CANCELLED, "gone")], RequestCancelled, "cancelled|gone"),
    "refused in text": (
        [ErrorText("in ensemble 'speech', invalid request: text: expected words")],
        RequestRefused,
        "^text: expected words",
    ),
    "refused by Triton": ([ErrorText("unexpected shape for input 'text'")], RequestRefused, "unexpected shape"),
    "draining in text": (
        [ErrorText("in ensemble 'speech', unavailable: server is draining")],
        ServerUnavailable,
        "^server is draining",
    ),
    "cancelled in text": ([ErrorText("cancelled: by the operator")], RequestCancelled, "^by the operator"),
    "failed in text": ([Chunk(), ErrorText("in ensemble 'speech', failed: decoder died")], ServerFailed, "^decoder"),
    "failed in bare text": ([Chunk(), ErrorText("decoder died")], ServerFailed, "decoder died"),
    "not loaded": ([ErrorText("'speech' has no available versions")], ServerUnavailable, "no available versions"),
    "an empty success": ([EmptyFinal()], ServerFailed, "the stream ended before the utterance did"),
    "ended early": ([Chunk(), Chunk(1)], ServerFailed, "the stream ended before the utterance did"),
    "FINAL without a last event": ([Chunk(), EmptyFinal()], ServerFailed, "the stream ended before"),
    "silent": ([Pause(PATIENCE_S)], TimedOut, "no first response within 0.2 s"),
    "stalled": ([Chunk(), Pause(PATIENCE_S)], TimedOut, "no next response within 0.1 s"),
    "endless": ([step for _ in range(99) for step in (Chunk(), Pause(0.05))], TimedOut, "not complete after 0.5 s"),
}


TIMEOUTS = {"silent": Timeouts(first_s=0.2), "stalled": Timeouts(between_s=0.1), "endless": Timeouts(total_s=0.5)}


@pytest.mark.parametrize("failure", FAILURES)
async def test_client_failure_raises_its_exception_type(serve: Serve, failure: str) -> None:
    steps, kind, message = FAILURES[failure]
    server, client = await serve(steps, timeouts=TIMEOUTS.get(failure))
    stream = client.speak("a")
    with pytest.raises(kind, match=message) as caught:
        async for _ in stream:
            pass
    assert type(caught.value) is kind
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    if kind is TimedOut and server.requests:  # on a busy machine, time may be up before the request is sent
        await asyncio.wait_for(server.cancelled.wait(), PATIENCE_S)


async def test_unreachable_server_is_reported_immediately() -> None:
    async with SpeechClient("127.0.0.1:9") as client:
        with pytest.raises(ServerUnavailable, match=r"no server answers at 127\.0\.0\.1:9"):
            await anext(client.speak("a"))
        assert not await client.ready()


async def test_server_closing_the_connection_is_detected(serve: Serve) -> None:
    server, client = await serve([Chunk(), Pause(PATIENCE_S)])
    stream = client.speak("a")
    await anext(stream)
    asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(server.stop()))
    with pytest.raises((ServerUnavailable, RequestCancelled)):
        await asyncio.wait_for(anext(stream), PATIENCE_S)


async def test_client_cancel_stops_the_server_and_raises(serve: Serve) -> None:
    server, client = await serve([Chunk(), Pause(PATIENCE_S)])
    stream = client.speak("a")
    await anext(stream)
    asyncio.get_running_loop().call_later(0.05, stream.cancel)
    with pytest.raises(RequestCancelled):
        await asyncio.wait_for(anext(stream), PATIENCE_S)
    await asyncio.wait_for(server.cancelled.wait(), PATIENCE_S)


@pytest.mark.parametrize("way", ["aclose", "async with", "dropped", "task"])
async def test_closing_a_stream_early_cancels_it(serve: Serve, way: str) -> None:
    server, client = await serve([Chunk(), Pause(PATIENCE_S)])
    stream = client.speak("a")
    await anext(stream)
    if way == "aclose":
        await stream.aclose()
        assert [event async for event in stream] == []
    elif way == "async with":
        async with stream:
            pass
    elif way == "dropped":
        del stream
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        with pytest.raises(RequestCancelled):
            await anext(stream)
    await asyncio.wait_for(server.cancelled.wait(), PATIENCE_S)


async def test_ready_checks_the_server_and_the_model(serve: Serve) -> None:
    server, client = await serve([])
    assert await client.ready()
    server.is_ready = False
    assert not await client.ready()


def test_timeouts_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be > 0 s"):
        Timeouts(first_s=0)
