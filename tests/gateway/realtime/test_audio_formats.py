"""Audio of realtime clients: samples cut anywhere, and formats that the gateway does not have."""

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import soxr

from stretto_gateway import g711
from tests.client.fake_server import PROFILE
from tests.gateway.conftest import HEARD, Start
from tests.gateway.realtime.caller import RATE, TALKS, Caller, answer, by_task, call, silence, spoken
from tests.gateway.realtime.test_duplex import DUPLEX, Partner
from tests.gateway.realtime.test_live_transcripts import LISTENS, Listening
from tests.gateway.test_transcription import READS_HINTS
from tests.patience import PATIENCE_S, until_async
from tests.tiers import by_night

NAMED = {"model": "whisper-1"}


async def append(caller: Caller, pcm: bytes, sizes: Sequence[int]) -> None:
    """Send bytes in pieces whose sizes are repeated in turn."""
    start, n = 0, 0
    while start < len(pcm):
        piece = pcm[start : start + sizes[n % len(sizes)]]
        await caller.send("input_audio_buffer.append", audio=base64.b64encode(piece).decode())
        start, n = start + len(piece), n + 1


async def heard_by_item(caller: Caller, item_id: str) -> bytes:
    """Return the samples of an item."""
    event = await caller.ask("conversation.item.retrieve", item_id=item_id)
    return base64.b64decode(event.item.content[0].audio)


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 98), *by_night(*((sizes,) for sizes in ((4801,), (3, 2, 2, 300), (0, 4801), (960, 961), (99_999,))))],
)
async def test_committed_audio_is_equal_however_it_was_cut(start: Start, sizes: tuple[int, ...]) -> None:
    pcm = spoken()[: RATE // 4 if max(sizes) > 300 else 2500].tobytes()
    async with call(await start(answer(), TALKS)) as caller:
        await caller.update()
        await append(caller, pcm, sizes)
        committed = await caller.ask("input_audio_buffer.commit")
        assert committed.type == "input_audio_buffer.committed", committed
        await caller.until("conversation.item.done")
        assert await heard_by_item(caller, committed.item_id) == pcm


async def test_turns_are_equal_however_their_audio_was_cut(start: Start) -> None:
    running = await start(by_task(asr=HEARD), PROFILE)
    recording = np.concatenate([silence(0.5), spoken()[:RATE], silence(1.0), spoken("train_rms")[:RATE], silence(1.0)])
    async with call(running, "gpt-4o-transcribe") as caller:
        await append(caller, recording.tobytes(), [4800])
        for _ in range(2):
            await caller.until("conversation.item.input_audio_transcription.completed")
    async with call(running, "gpt-4o-transcribe") as caller:
        await append(caller, recording.tobytes(), [4801, 4800, 4799, 4801])
        for _ in range(2):
            await caller.until("conversation.item.input_audio_transcription.completed")
    even, odd = running.behind.requests[:2], running.behind.requests[2:]
    assert [request["audio"] for request in even] == [request["audio"] for request in odd]


async def test_language_and_prompt_of_a_session_are_sent_with_each_turn(start: Start) -> None:
    running = await start(by_task(asr=HEARD), READS_HINTS, strict=True)
    async with call(running, "gpt-4o-transcribe") as caller:
        hints = {"language": "fr", "prompt": "Seine"}
        await caller.update(type="transcription", input={"transcription": hints})
        await append(caller, spoken()[:RATE].tobytes(), [4800])
        await caller.ask("input_audio_buffer.commit")
        await caller.until("conversation.item.input_audio_transcription.completed")
    (request,) = running.behind.requests
    assert json.loads(request["options"]) == {"language": "french"}
    assert json.loads(request["messages"])[0] == {"role": "system", "text": "Seine"}


@pytest.mark.parametrize("kind", ["clear", "commit"])
async def test_clear_and_commit_end_an_incomplete_sample(start: Start, kind: str) -> None:
    pcm = spoken()[: RATE // 5].tobytes()
    async with call(await start(answer(), TALKS)) as caller:
        await caller.update()
        await append(caller, pcm + b"\1", [len(pcm) + 1])
        ended = await caller.ask(f"input_audio_buffer.{kind}")
        if kind == "commit":
            await caller.until("conversation.item.done")
            assert await heard_by_item(caller, ended.item_id) == pcm
        await append(caller, pcm, [4800])
        committed = await caller.ask("input_audio_buffer.commit")
        await caller.until("conversation.item.done")
        assert await heard_by_item(caller, committed.item_id) == pcm


async def test_refused_piece_leaves_later_samples_whole(start: Start) -> None:
    pcm = spoken()[: RATE // 5].tobytes()
    async with call(await start(answer(), TALKS)) as caller:
        await caller.update()
        await append(caller, pcm[:4801], [4801])
        refused = await caller.ask("input_audio_buffer.append", audio="?")
        assert (refused.type, refused.error.param) == ("error", "audio")
        await append(caller, pcm[4801:], [4801])
        committed = await caller.ask("input_audio_buffer.commit")
        await caller.until("conversation.item.done")
        assert await heard_by_item(caller, committed.item_id) == pcm


async def test_live_transcripts_hear_whole_samples(start: Start) -> None:
    listening = Listening()
    recording = spoken()[:RATE]
    async with call(await start(listening, LISTENS), "gpt-4o-transcribe") as caller:
        await caller.update(None, type="transcription", input={"transcription": NAMED})
        await append(caller, recording.tobytes(), [961])
        await caller.send("input_audio_buffer.commit")
        await caller.until("conversation.item.input_audio_transcription.completed")
    sent = np.rint(np.array(listening.heard[0]) * 32768).astype(np.int16)
    assert (sent == recording[: len(sent)]).all()
    assert len(sent) == len(recording)


async def test_duplex_sessions_hear_whole_samples(start: Start) -> None:
    partner = Partner()
    recording = spoken()[:RATE]
    async with call(await start(partner, DUPLEX)) as caller:
        await append(caller, recording.tobytes(), [1921, 1919, 1921])
        await until_async(lambda: len(partner.heard) > 0.9 * RATE)
        partner.is_over.set()
        await caller.until("response.done")
    sent = np.rint(np.array(partner.heard) * 32768).astype(np.int16)
    assert (sent == recording[: len(sent)]).all()


LAWS: dict[str, g711.Law] = {"audio/pcmu": "mulaw", "audio/pcma": "alaw"}
BETA = {"audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}


def telephone(pcm: np.ndarray) -> np.ndarray:
    """Return samples at 24 kHz, int16 [n], in a telephone's band, at 8 kHz."""
    return soxr.resample(pcm, RATE, g711.RATE)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("audio/pcmu", (1, 1, 98)),
        ("audio/pcma", (161, 159)),
        *by_night(("audio/pcmu", (160,)), ("audio/pcmu", (0, 4801))),
    ],
)
async def test_g711_audio_is_equal_however_it_was_cut(start: Start, kind: str, sizes: tuple[int, ...]) -> None:
    pcm = spoken()[: RATE // 8 if 1 in sizes else RATE]
    data = g711.encode(LAWS[kind], telephone(pcm))
    async with call(await start(answer(), TALKS)) as caller:
        updated = await caller.update(input={"format": {"type": kind}})
        assert (updated.type, updated.session.audio.input.format.type) == ("session.updated", kind)
        items = []
        for cut in (sizes, (len(data),)):
            await append(caller, data, cut)
            items.append((await caller.ask("input_audio_buffer.commit")).item_id)
            await caller.until("conversation.item.done")
        same = [await heard_by_item(caller, each) for each in items]
        await caller.update(input={"format": {"type": "audio/pcm", "rate": RATE}})
        plain = np.frombuffer(await heard_by_item(caller, items[0]), "<i2").astype(float)
    assert same[0] == same[1]
    assert len(same[0]) == len(data), "it is returned in the format of the session"
    assert len(plain) == 3 * len(data)
    decoded = soxr.resample(g711.decode(LAWS[kind], data), g711.RATE, RATE).astype(float)
    assert np.std(plain - decoded) < 0.1 * np.std(decoded)


@pytest.mark.parametrize("kind", LAWS)
async def test_telephone_turn_is_detected_and_answered_in_g711(start: Start, kind: str) -> None:
    running = await start(by_task(dialogue=answer()), TALKS)
    turn = np.concatenate([silence(0.5), spoken()[: 2 * RATE], silence(1.0)])
    async with call(running) as caller:
        flat = {"input_audio_format": BETA[kind], "output_audio_format": BETA[kind]}
        updated = await caller.ask("session.update", session={"type": "realtime"} | flat)
        assert updated.session.audio.output.format.type == kind
        await append(caller, g711.encode(LAWS[kind], telephone(turn)), [160])
        events = await caller.until("response.done")
    began = next(event for event in events if event.type == "input_audio_buffer.speech_started")
    assert 0 <= began.audio_start_ms <= 500
    assert events[-1].response.audio.output.format.type == kind
    sound = b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
    assert sound == g711.encode(LAWS[kind], np.full(2 * RATE // 5, 8192, np.int16))
    assert b'"sample_rate": 8000' in running.behind.requests[0]["options"]


async def test_one_reply_may_have_another_format_and_speed(start: Start) -> None:
    async with call(await start(by_task(dialogue=answer()), TALKS)) as caller:
        await caller.update(audio={"output": {"format": PCMU}})
        await caller.say("How are you?")
        for form, num_bytes in ((PCMU, RATE // 5), ({"type": "audio/pcm", "rate": RATE}, 2 * RATE // 5)):
            own = {"conversation": "none", "audio": {"output": {"format": form, "speed": 2}}}
            await caller.send("response.create", response=own)
            events = await caller.until("response.done")
            sound = b"".join(base64.b64decode(each.delta) for each in events if each.type.endswith("audio.delta"))
            assert len(sound) == num_bytes


async def test_interrupted_telephone_reply_keeps_the_played_part(start: Start) -> None:
    async with call(await start(by_task(dialogue=answer()), TALKS)) as caller:
        await caller.update(audio={"output": {"format": PCMU}})
        await caller.say("How are you?")
        await caller.send("response.create")
        item = (await caller.until("response.done"))[-1].response.output[0].id
        late = await caller.ask("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=1201)
        assert "at most 1200 ms" in late.error.message, "as long as at 8 kHz"


async def test_duplex_session_speaks_and_listens_in_g711(start: Start) -> None:
    partner = Partner()
    recording = spoken()[:RATE]
    async with call(await start(partner, DUPLEX)) as caller:
        await caller.ask("session.update", session={"type": "realtime", "audio": {"input": {"format": PCMU}}})
        await caller.ask("session.update", session={"type": "realtime", "audio": {"output": {"format": PCMU}}})
        await append(caller, g711.encode("mulaw", telephone(recording)), [160])
        await until_async(lambda: len(partner.heard) > 0.9 * RATE)
        late = await caller.ask("session.update", session={"type": "realtime", "output_audio_format": "pcm16"})
        while late.type != "error":
            late = await caller.next()
        assert late.error.param == "session.audio.output.format"
        partner.is_over.set()
        events = await caller.until("response.done")
    assert events[-1].response.audio.output.format.type == "audio/pcmu"
    assert partner.options["output"]["sample_rate"] == 8000
    sent = np.array(partner.heard) * 32768
    assert np.corrcoef(sent, recording[: len(sent)])[0, 1] > 0.9


PCMU, G722 = {"type": "audio/pcmu"}, {"type": "audio/g722"}
OTHERS: list[dict[str, Any]] = [
    {"audio": {"input": {"format": {"type": "audio/pcmu", "rate": 16_000}}}},
    {"audio": {"input": {"format": {"type": "audio/g722"}}}},
    {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}},
    {"audio": {"input": {"format": "audio/opus"}}},
    {"input_audio_format": "g711"},
    {"audio": {"input": {"format": {"type": "audio/g722"}}}, "tools": [{"type": "function"}]},
]
NOISE = base64.b64encode(bytes(range(256)) * 20).decode()


@pytest.mark.parametrize(("update", "is_strict"), [*((update, False) for update in OTHERS), (OTHERS[0], True)])
async def test_audio_of_a_refused_format_is_refused_until_a_format_is_set(
    start: Start, update: dict[str, Any], is_strict: bool
) -> None:
    running = await start(by_task(asr=HEARD, dialogue=answer()), TALKS, strict=is_strict)
    async with call(running) as caller:
        await caller.update(None, input={"transcription": NAMED})
        assert (await caller.ask("session.update", session={"type": "realtime"} | update)).type == "error"
        if not is_strict:
            assert (await caller.next()).type == "session.updated"
        recording = {"type": "input_audio", "audio": NOISE}
        item = {"type": "message", "role": "user", "content": [recording]}
        for kind, fields, param in (
            ("input_audio_buffer.append", {"audio": NOISE}, "audio"),
            ("conversation.item.create", {"item": item}, "item"),
            ("response.create", {"response": {"input": [item]}}, "response.input.0"),
        ):
            error = (await caller.ask(kind, **fields)).error
            assert error.param == param
            assert "expected session.audio.input.format to be set to a format of the gateway first" in error.message
        empty = (await caller.ask("input_audio_buffer.commit")).error
        assert empty.code == "input_audio_buffer_commit_empty"
        assert (await caller.ask("session.update", session={"type": "realtime", "instructions": "Hm."})).type
        assert (await caller.ask("input_audio_buffer.append", audio=NOISE)).type == "error", "still"
        written = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hm?"}]}
        await caller.put(written)
        for good in (PCMU, "g711_alaw", {"type": "audio/pcm", "rate": 24_000}, "pcm16", {"type": "audio/pcm"}):
            update = {"type": "realtime", "audio": {"input": {"format": good}}}
            assert (await caller.ask("session.update", session=update)).type == "session.updated"
        await caller.send("input_audio_buffer.append", audio=NOISE)
        await caller.send("input_audio_buffer.commit")
        await caller.until("conversation.item.input_audio_transcription.completed")
    assert [request["task"] for request in running.behind.requests] == [b"asr"]


async def test_speech_for_a_refused_output_format_is_refused(start: Start) -> None:
    async with call(await start(by_task(dialogue=answer(), chat=HEARD), TALKS)) as caller:
        await caller.ask("session.update", session={"type": "realtime", "audio": {"output": {"format": G722}}})
        await caller.until("session.updated")
        await caller.say("How are you?")
        error = (await caller.ask("response.create")).error
        assert error.param == "response"
        assert "expected session.audio.output.format to be set to a format of the gateway first" in error.message
        await caller.send("response.create", response={"output_modalities": ["text"]})
        assert (await caller.until("response.done"))[-1].response.status == "completed"
        await caller.say("How are you?")
        own = {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 24_000}}}}
        await caller.send("response.create", response=own)
        assert (await caller.until("response.done"))[-1].response.status == "completed"


async def test_detected_turn_reports_a_refused_output_format(start: Start) -> None:
    running = await start(by_task(dialogue=answer()), TALKS)
    async with call(running) as caller:
        await caller.ask("session.update", session={"type": "realtime", "output_audio_format": "g722"})
        await caller.until("session.updated")
        await caller.hear(np.concatenate([spoken()[:RATE], silence(1.0)]))
        async with asyncio.timeout(PATIENCE_S):
            while (event := await caller.next()).type != "error":
                pass
    assert event.error.param == "response"
    assert not running.behind.requests


@pytest.mark.parametrize(("direction", "param"), [("input", "audio"), ("output", "response")])
async def test_duplex_session_refuses_audio_of_a_refused_format(start: Start, direction: str, param: str) -> None:
    partner = Partner()
    running = await start(partner, DUPLEX)
    async with call(running) as caller:
        await caller.ask("session.update", session={"type": "realtime", "audio": {direction: {"format": G722}}})
        await caller.until("session.updated")
        error = (await caller.ask("input_audio_buffer.append", audio=NOISE)).error
        assert error.param == param
        assert f"session.audio.{direction}.format" in error.message
    assert not running.behind.requests
