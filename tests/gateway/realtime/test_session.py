"""The realtime API with OpenAI's own client: settings, items, replies, transcripts."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest

from stretto_gateway.realtime.settings import RealtimeSettings, ServerVad, SettingsChange, joined
from tests.client.fake_server import Chunk, ErrorText, Until
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE, TALKS, answer, by_task, call, codes, silence, spoken
from tests.gateway.realtime.test_images import SEES
from tests.patience import PATIENCE_S

WRITTEN = [Chunk(0, None, text="fine"), Chunk(1, None, text=" then", is_final=True, is_last=True)]
NOTHING_SAID = silence(0.5)
VAD = {"type": "server_vad"}


async def test_realtime_text_turn_is_answered_in_speech(start: Start) -> None:
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
async def test_realtime_response_reports_its_voice_name(start: Start, voice: Any) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        await caller.say("Well?")
        await caller.send("response.create", response={"audio": {"output": {"voice": voice}}})
        done = (await caller.until("response.done"))[-1].response
    assert done.audio.output.voice == "alloy"


async def test_next_turn_is_requested_with_the_whole_history(start: Start) -> None:
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


async def test_user_turn_is_answered_in_text(start: Start) -> None:
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


async def test_realtime_cancel_stops_generation(start: Start) -> None:
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
        await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
        assert (await caller.ask("response.cancel")).error.code == "response_cancel_not_active"


async def test_history_is_truncated_to_the_played_audio(start: Start) -> None:
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


async def test_items_are_created_retrieved_and_deleted(start: Start) -> None:
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


RAW = "data:image/png,raw"
# A part of a message, the message's role, the field in the part, and the beginning of the error.
PARTS: list[tuple[dict[str, str], str, str, str]] = [
    ({"type": "output_text", "text": "a"}, "user", "type", "expected input_text or input_audio or input_image in a"),
    ({"type": "input_audio"}, "user", "audio", "missing"),
    ({"type": "input_audio", "audio": ""}, "user", "audio", "expected at least one sample, got none"),
    ({"type": "input_audio", "audio": "AA="}, "user", "audio", "expected base64, got"),
    ({"type": "input_audio", "audio": "AAAA"}, "user", "audio", "expected an even number of bytes"),
    ({"type": "input_image"}, "user", "image_url", "missing"),
    ({"type": "input_image", "image_url": "https://example.com/a"}, "user", "image_url", "expected base64 or a data:"),
    ({"type": "input_image", "image_url": RAW}, "user", "image_url", "expected a data: URL whose data is"),
    ({"type": "input_image", "image_url": "a.png"}, "user", "image_url", "expected a data: URL with base64, got"),
    ({"type": "input_image", "image_url": RAW}, "system", "type", "expected input_text in a system message"),
    ({"type": "input_image", "image_url": RAW}, "assistant", "type", "expected output_text or output_audio or text in"),
]


@pytest.mark.parametrize(("part", "role", "field", "message"), PARTS)
async def test_invalid_conversation_item_names_the_field(
    start: Start, part: dict[str, str], role: str, field: str, message: str
) -> None:
    async with call(await start(answer(), SEES)) as caller:
        item = {"type": "message", "role": role, "content": [part]}
        error = (await caller.ask("conversation.item.create", item=item)).error
        assert error.param == f"item.content.0.{field}"
        assert error.message.startswith(f"{error.param}: {message}")


async def test_server_error_sets_the_realtime_response_status(start: Start) -> None:
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
async def test_realtime_input_audio_is_transcribed(start: Start, connect: dict[str, Any]) -> None:
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


async def test_realtime_transcription_failure_is_reported(start: Start) -> None:
    async with call(await start([ErrorText("failed: no")]), "whisper-1") as caller:
        await caller.update(type="transcription")
        await caller.hear(NOTHING_SAID)
        await caller.send("input_audio_buffer.commit")
        failed = (await caller.until("conversation.item.input_audio_transcription.failed"))[-1]
        assert failed.error.code == "server_failed"


async def test_session_updates_keep_unmentioned_settings(start: Start) -> None:
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


VOICE = {"audio": {"output": {"voice": "nova"}}, "instructions": "Be brief."}
# Values of fields that have a meaning here.
WRONG = [
    ({"type": "other"}, "session.type"),
    ({"model": "parrot"}, "session.model"),
    ({"output_modalities": ["smell"]}, "session.output_modalities.0"),
    ({"instructions": 7}, "session.instructions"),
    ({"audio": {"output": {"voice": 3}}}, "session.audio.output.voice"),
    ({"audio": {"output": {"voice": "nobody"}}}, "session.audio.output.voice"),
    ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "session.audio.input.format.type"),
    ({"audio": {"input": {"format": {"type": "audio/pcmu", "rate": 24_000}}}}, "session.audio.input.format.rate"),
    ({"input_audio_format": "g711"}, "session.audio.input.format.type"),
    ({"audio": {"input": 5}}, "session.audio.input"),
    ({"audio": {"output": {"speed": 9}}}, "session.audio.output.speed"),
    (
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
        "session.audio.input.turn_detection.threshold",
    ),
    ({"audio": {"input": {"turn_detection": {"type": "other"}}}}, "session.audio.input.turn_detection"),
    (
        {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "none"}}}},
        "session.audio.input.turn_detection.eagerness",
    ),
]
# Fields without a meaning here, or of which another value has none.
UNHONOURED = [
    ({"unknown": 1}, "session.unknown"),
    ({"tools": [{"type": "function", "name": "look"}]}, "session.tools"),
    ({"tool_choice": "required"}, "session.tool_choice"),
    ({"tracing": "auto"}, "session.tracing"),
    ({"prompt": {"id": "pmpt_1"}}, "session.prompt"),
    ({"include": ["item.input_audio_transcription.logprobs"]}, "session.include"),
    ({"max_output_tokens": 4096}, "session.max_output_tokens"),
    ({"truncation": {"type": "retention_ratio", "retention_ratio": 0.5}}, "session.truncation"),
    ({"reasoning": {"effort": "low"}}, "session.reasoning"),
    ({"temperature": 0.8}, "session.temperature"),
    ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "session.audio.input.noise_reduction"),
    ({"audio": {"input": {"transcription": {"keywords": ["a"]}}}}, "session.audio.input.transcription.keywords"),
    ({"audio": {"input": {"transcription": {"languages": ["en"]}}}}, "session.audio.input.transcription.languages"),
    ({"audio": {"input": {"transcription": {"prompt": "an"}}}}, "session.audio.input.transcription.prompt"),
    (
        {"audio": {"input": {"turn_detection": {"idle_timeout_ms": 9}}}},
        "session.audio.input.turn_detection.idle_timeout_ms",
    ),
]


def both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge the fields of two updates."""
    return joined(one, {"type": "realtime"} | other)


@pytest.mark.parametrize(("session", "param"), WRONG)
async def test_invalid_session_value_is_an_error_and_other_fields_apply(start: Start, session: Any, param: str) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        await caller.update(VAD | {"threshold": 0.9}, input={"transcription": {"model": "whisper-1"}}, **VOICE)
        other = {"instructions": "Be kind.", "audio": {"output": {"voice": "onyx"}}}
        error = await caller.ask("session.update", session=both(other, session), event_id="mine")
        assert (error.type, error.error.param, error.error.event_id) == ("error", param, "mine")
        updated = (await caller.next()).session
        assert updated.instructions == ("Be brief." if "instructions" in session else "Be kind.")
        assert updated.audio.output.voice == (
            "nova" if "voice" in session.get("audio", {}).get("output", {}) else "onyx"
        )
        assert updated.model == "gpt-realtime"
        assert getattr(updated.audio.input.turn_detection, "threshold", 0.9) == 0.9
        assert updated.audio.input.transcription.model == "whisper-1"
        assert (await caller.ask("input_audio_buffer.clear")).type == "input_audio_buffer.cleared"


async def test_unsupported_session_field_is_ignored_and_reported(start: Start) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        for session, param in UNHONOURED:
            updated = await caller.ask("session.update", session=both(VOICE | {"instructions": param}, session))
            assert updated.type == "session.updated"
            assert updated.stretto_ignored == [param]
            assert (updated.session.instructions, updated.session.audio.output.voice) == (param, "nova")


async def test_strict_gateway_rejects_the_whole_session_update(start: Start) -> None:
    async with call(await start(answer(), TALKS, strict=True)) as caller:
        for session, param in WRONG[2:] + UNHONOURED:
            error = await caller.ask("session.update", session=both(VOICE, session), event_id=param)
            assert (error.type, error.error.param, error.error.event_id) == ("error", param, param)
            assert error.error.message.startswith(f"{param}: ")
            updated = await caller.ask("session.update", session={"type": "realtime"})
            assert (updated.session.instructions, updated.session.audio.output.voice) == (None, None)


async def test_no_op_session_fields_are_not_reported_as_ignored(start: Start) -> None:
    heard = {"noise_reduction": None, "transcription": {"language": "en", "keywords": []}, "format": None}
    session = {
        "type": "realtime",
        "tools": [],
        "tool_choice": "auto",
        "tracing": None,
        "prompt": None,
        "include": [],
        "model": None,
    }
    session |= {"max_output_tokens": "inf", "truncation": "auto", "parallel_tool_calls": True}
    session["audio"] = {"input": heard, "output": {"speed": 1.0, "voice": None}}
    async with call(await start(answer(), TALKS, strict=True)) as caller:
        updated = await caller.ask("session.update", session=session)
        assert updated.type == "session.updated"
        assert not hasattr(updated, "stretto_ignored")
        assert updated.session.audio.input.format.rate == 24_000


async def test_eagerness_of_semantic_vad_sets_the_silence(start: Start) -> None:
    asked = {"type": "semantic_vad", "eagerness": "low", "interrupt_response": False}
    async with call(await start(answer(), TALKS)) as caller:
        await caller.update(VAD | {"threshold": 0.9})
        detection = (await caller.update(asked)).session.audio.input.turn_detection
        assert (detection.type, detection.eagerness, detection.interrupt_response) == ("semantic_vad", "low", False)
        again = await caller.update(VAD)
        assert again.session.audio.input.turn_detection.threshold == 0.5, "settings of another type do not stay"
    for eagerness, silence_ms in (("low", 1000), ("medium", 500), ("auto", 500), ("high", 300)):
        update = {"audio": {"input": {"turn_detection": asked | {"eagerness": eagerness}}}}
        change = SettingsChange(RealtimeSettings(model="tiny"), update, "tiny")
        assert change.settings.audio.input.vad == ServerVad(silence_duration_ms=silence_ms, interrupt_response=False)


async def test_beta_api_fields_are_accepted(start: Start) -> None:
    session = {
        "modalities": ["text", "audio"],
        "voice": "nova",
        "input_audio_format": "pcm16",
        "output_audio_format": "pcm16",
        "input_audio_transcription": {"model": "whisper-1"},
        "turn_detection": {"type": "server_vad", "threshold": 0.7},
        "max_response_output_tokens": "inf",
    }
    async with call(await start(answer(), TALKS, strict=True)) as caller:
        updated = (await caller.ask("session.update", session=session)).session
        assert (updated.output_modalities, updated.audio.output.voice) == (["audio"], "nova")
        assert updated.audio.input.turn_detection.threshold == 0.7
        assert updated.audio.input.transcription.model == "whisper-1"
        await caller.say("Well?")
        reply = {"modalities": ["audio", "text"], "voice": "onyx", "output_audio_format": "pcm16"}
        await caller.send("response.create", response=reply)
        done = (await caller.until("response.done"))[-1].response
        assert (done.output_modalities, done.audio.output.voice) == (["audio"], "onyx")


@pytest.mark.parametrize("name", ["gpt-realtime-whisper", "gpt-live-transcribe"])
async def test_transcription_models_without_vad_disable_turn_detection(start: Start, name: str) -> None:
    told = {"type": "transcription", "audio": {"input": {"transcription": {"model": name}}}}
    async with call(await start(), "tiny", extra_query={"intent": "transcription"}) as caller:
        assert caller.seen[0].session.audio.input.turn_detection.type == "server_vad"
        assert (await caller.ask("session.update", session=told)).session.audio.input.turn_detection is None
        assert (await caller.update(VAD, type="transcription")).session.audio.input.turn_detection is not None


async def test_unsupported_transcription_is_ignored(start: Start) -> None:
    deaf = TALKS | {"tasks": [each for each in TALKS["tasks"] if each["name"] != "asr"]}
    async with call(await start(answer(), deaf)) as caller:
        updated = await caller.update(input={"transcription": {"model": "gpt-4o-mini-transcribe"}}, **VOICE)
        assert updated.stretto_ignored == ["session.audio.input.transcription"]
        assert updated.session.audio.input.transcription is None
        assert updated.session.instructions == "Be brief."


async def test_unknown_item_and_response_fields_are_reported_as_ignored(start: Start) -> None:
    item = {"type": "message", "role": "user", "mood": "good", "content": [{"type": "input_text", "text": "?"}]}
    reply = {"conversation": "auto", "tools": [], "tool_choice": "auto", "max_output_tokens": "inf", "metadata": None}
    reply |= {
        "output_modalities": ["audio"],
        "temperature": 0.8,
        "audio": {"output": {"format": {"type": "audio/pcm"}}},
    }
    async with call(await start(answer(), TALKS)) as caller:
        assert (await caller.put(item)).stretto_ignored == ["item.mood"]
        created = await caller.ask("response.create", response=reply)
        assert created.stretto_ignored == ["response.temperature"]
        assert (await caller.until("response.done"))[-1].response.status == "completed"
    async with call(await start(answer(), TALKS, strict=True)) as caller:
        assert (await caller.ask("conversation.item.create", item=item)).error.param == "item.mood"
        assert (await caller.ask("response.create", response=reply)).error.param == "response.temperature"


async def test_openai_transcription_model_names_open_transcriptions(start: Start) -> None:
    running = await start()
    for name in ("gpt-transcribe", "gpt-live-transcribe", "gpt-4o-mini-transcribe-2025-12-15", "whisper-1"):
        async with call(running, name) as caller:
            heard = caller.seen[0].session.audio.input
        assert (caller.seen[0].session.type, heard.transcription.model) == ("transcription", name)
        assert (heard.turn_detection is None) == (name == "gpt-live-transcribe")


@pytest.mark.parametrize(("session", "reply"), [(2.0, None), (None, 2.0), (0.5, 2.0)])
async def test_a_reply_has_the_requested_speed(start: Start, session: float | None, reply: float | None) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        updated = await caller.update(audio={"output": {"speed": session}})
        assert updated.session.audio.output.speed == session
        await caller.say("Well?")
        await caller.send("response.create", response={"audio": {"output": {"speed": reply}}})
        events = await caller.until("response.done")
        deltas = [event.delta for event in events if event.type == "response.output_audio.delta"]
        assert len(b"".join(map(base64.b64decode, deltas))) == 2 * RATE // 5, "0.4 s in half the time"
        place = {"item_id": events[-1].response.output[0].id, "content_index": 0}
        cut = await caller.ask("conversation.item.truncate", audio_end_ms=100, **place)
        assert cut.type == "conversation.item.truncated"
        await caller.say("No, I mean ...")
        await caller.send("response.create")
        await caller.until("response.done")
    heard = json.loads(running.behind.requests[1]["messages"])[1]
    assert heard["codes"] == [row[:10] for row in codes(20)], "half of it was heard"


GREETING = [{"role": "user", "text": "Greet the user."}]


@pytest.mark.parametrize(
    ("session", "response"),
    [
        ({}, {"instructions": "Greet the user.", "metadata": {"client_event_id": "1"}}),
        ({"instructions": "Greet the user."}, {}),
        ({"instructions": "Be brief."}, {"instructions": "Greet the user."}),
        (
            {},
            {
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Greet the user."}]}
                ]
            },
        ),
    ],
)
async def test_response_create_greets_from_instructions(start: Start, session: Any, response: Any) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        await caller.update(**session)
        await caller.send("response.create", response=response)
        events = await caller.until("response.done")
        assert events[-1].response.status == "completed"
        assert "response.output_audio.delta" in [event.type for event in events]
        await caller.say("Hello.")
        await caller.send("response.create")
        await caller.until("response.done")
    first, second = (json.loads(each["messages"]) for each in running.behind.requests)
    assert first == GREETING
    system = [{"role": "system", "text": session["instructions"]}] if session else []
    said = {"role": "assistant", "text": "so it", "codes": codes(20)}
    assert second == [*system, said, {"role": "user", "text": "Hello."}]


async def test_response_instructions_replace_a_missing_user_message(start: Start) -> None:
    running = await start(answer(), TALKS)
    async with call(running) as caller:
        await caller.update(instructions="Be brief.")
        await caller.say("Hello.")
        for response in ({}, {"instructions": "Say goodbye."}):
            await caller.send("response.create", response=response)
            await caller.until("response.done")
        refusal = (await caller.ask("response.create")).error
        assert (refusal.param, "expected a user message" in refusal.message) == ("response", True)
    assert json.loads(running.behind.requests[1]["messages"])[-1] == {"role": "user", "text": "Say goodbye."}


async def test_response_with_custom_input_stays_out_of_the_conversation(start: Start) -> None:
    running = await start(answer(), TALKS)
    asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Sum it up."}]}
    async with call(running) as caller:
        await caller.say("Hello.", id="first")
        given = [{"type": "item_reference", "id": "first"}, asked]
        await caller.send("response.create", response={"conversation": "none", "input": given})
        kinds = [event.type for event in await caller.until("response.done")]
        assert not [kind for kind in kinds if kind.startswith("conversation.")]
        for wrong, param in (({"type": "item_reference", "id": "no"}, "item_id"), (asked | {"role": "dog"}, "role")):
            refusal = (await caller.ask("response.create", response={"input": [wrong]})).error
            assert refusal.param == f"response.input.0.{param}"
        await caller.send("response.create")
        await caller.until("response.done")
    first, second = (json.loads(each["messages"]) for each in running.behind.requests)
    assert first == [{"role": "user", "text": "Hello."}, {"role": "user", "text": "Sum it up."}]
    assert second == [{"role": "user", "text": "Hello."}]


async def test_unsupported_instructions_are_ignored_and_reported(start: Start) -> None:
    without_system = TALKS | {"tasks": [each | {"system": []} for each in TALKS["tasks"]]}
    running = await start(answer(), without_system)
    async with call(running) as caller:
        await caller.update(instructions="Be brief.")
        await caller.say("Hello.")
        assert (await caller.ask("response.create")).stretto_ignored == ["session.instructions"]
        await caller.until("response.done")
    assert json.loads(running.behind.requests[0]["messages"]) == [{"role": "user", "text": "Hello."}]


async def test_realtime_response_options_are_checked_like_speech_options(start: Start) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        await caller.say("How are you?")
        refusal = (await caller.ask("response.create", response={"options": {"output": {"ring": {}}}})).error
        assert refusal.param == "response.options"


async def test_model_without_conversation_support_refuses_it(start: Start) -> None:
    async with call(await start()) as caller:
        await caller.say("How are you?")
        refusal = (await caller.ask("response.create")).error
        assert (refusal.param, "'tiny' does not support conversations" in refusal.message) == ("session.model", True)


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
async def test_unsupported_reply_settings_error_names_the_field(
    start: Start, session: dict[str, Any], response: dict[str, Any], param: str
) -> None:
    without_system = [each | {"system": []} for each in TALKS["tasks"]]
    async with call(await start(answer(), TALKS | {"tasks": without_system}, strict=True)) as caller:
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
async def test_realtime_errors_name_the_response_field(start: Start, theirs: str, ours: str) -> None:
    async with call(await start([ErrorText(f"invalid request: {theirs}: expected another one")], TALKS)) as caller:
        await caller.say("How are you?")
        await caller.send("response.create")
        done = (await caller.until("response.done"))[-1].response
        # OpenAI's type of the error has no room for its message, which is sent beside it.
        assert (done.status, done.status_details.error.code) == ("failed", "invalid_value")
        assert done.status_details.error.message == f"{ours}: expected another one"
