"""Behaviour common to all endpoints: models, voices, batches, keys, limits, errors, health, metrics, logs."""

import asyncio
import base64
import json
import logging
from typing import Any, Literal, get_args, get_origin
from unittest.mock import AsyncMock, Mock
from urllib.parse import quote

import grpc
import httpx
import openai
import pytest
from openai.types import AudioModel
from openai.types.audio import SpeechModel
from openai.types.realtime import AudioTranscription, RealtimeSessionCreateRequest
from openai.types.shared import ChatModel

from stretto_client import ModelProfile, ServerUnavailable
from stretto_gateway import app, catalogue
from stretto_gateway.answers import ApiError
from stretto_gateway.catalogue import VOICE_ALIASES
from stretto_gateway.config import Limits
from stretto_gateway.encoding import wav_header
from stretto_gateway.guard import is_address
from stretto_gateway.speech_batch import PART_BYTES, ItemResult, batch_parts, together
from tests.client.fake_server import PROFILE, Abort, ErrorText, Request, Step, Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start
from tests.gateway.realtime.test_bounds import status
from tests.gateway.test_connection import connect_slowly
from tests.patience import PATIENCE_S

KEY = "sk-0123456789abcdef"
REQUEST = {"model": "tts-1", "voice": "alloy", "input": "A cat.", "response_format": "pcm"}


async def test_models_list_the_served_model_and_openai_names_alias_it(start: Start) -> None:
    client = (await start()).openai()
    (model,) = [model async for model in client.models.list()]
    assert (model.id, model.owned_by) == ("tiny", "stretto")
    assert (await client.models.retrieve("whisper-1")).id == "tiny"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("parrot")


def names_in(annotation: Any) -> set[str]:
    """Return the names that an SDK's type lists, at any depth."""
    if get_origin(annotation) is Literal:
        return {name for name in get_args(annotation) if isinstance(name, str)}
    return {name for inner in get_args(annotation) for name in names_in(inner)}


def sdk_models() -> set[str]:
    """Return the installed SDK's models for speech, transcription, realtime and spoken chat."""
    session = RealtimeSessionCreateRequest.model_fields["model"].annotation
    transcription = AudioTranscription.model_fields["model"].annotation
    chat = {name for name in names_in(ChatModel) if "audio" in name}
    return chat.union(*map(names_in, (SpeechModel, AudioModel, session, transcription)))


OTHERS = {  # which these clients send unless they are configured
    *("gpt-transcribe", "gpt-live-transcribe", "gpt-realtime-2.1", "gpt-realtime-1.5", "gpt-4o-transcribe-diarize"),
    *(
        "kokoro",
        "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice",
        "Systran/faster-distil-whisper-small.en",
        "speaches-ai/Kokoro-82M-v1.0-ONNX",
    ),
}


async def test_sdk_model_names_resolve_to_the_served_model(start: Start) -> None:
    names = sdk_models() | OTHERS
    assert len(names) > 30, "the SDK lists them elsewhere now"
    async with (await start()).http() as http:
        for name in sorted(names):
            answer = await http.get(f"/v1/models/{quote(name, safe='')}")
            assert (name, answer.status_code) == (name, 200)


@pytest.mark.slow
async def test_head_is_supported_for_every_get_route_without_a_body(start: Start) -> None:
    running = await start()
    async with running.http() as http:
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/models/tiny"):
            got, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (got.status_code, b"") == (200, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]
        for path in ("/", "/docs", "/openapi.json", "/v1/audio/voices"):
            assert (await http.head(path)).status_code == 200, path
        assert (await http.head("/v1/audio/speech")).status_code == 405


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", None])
async def test_missing_or_wrong_content_type_is_reported(start: Start, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    async with (await start()).http() as http:
        for path in ("/v1/audio/speech", "/v1/audio/speech/batch", "/v1/chat/completions"):
            answer = await http.post(path, content=json.dumps(REQUEST).encode(), headers=headers)
            assert answer.status_code == 400
            assert "expected the header Content-Type: application/json, got " in answer.json()["error"]["message"]
            assert str(kind) in answer.json()["error"]["message"]


VOICES = [{"id": "slt", "name": "slt"}, {"id": "rms", "name": "rms"}]
UNKNOWN = {"language": "", "gender": "", "description": ""}
LISTED = [voice | {"preview": f"/v1/audio/voices/{voice['id']}/preview"} | UNKNOWN for voice in VOICES]
MODEL = {"id": "tiny", "root": "tiny", "object": "model", "owned_by": "stretto"}
# Path, and the fields of its answer that other clients read: Open WebUI, Speaches, vLLM's benchmark, and llm-d.
LISTS: list[tuple[str, Any]] = [
    ("/v1/audio/voices", {"voices": LISTED, "names": ["slt", "rms"]}),
    ("/v1/models/gpt-4o-mini-tts", MODEL | {"voices": VOICES}),
    ("/v1/audio/models", {"models": [{"id": "tiny", "name": "tiny"}]}),
]


async def test_lists_have_the_fields_that_other_clients_read(start: Start) -> None:
    async with (await start()).http() as http:
        for path, expected in LISTS:
            record = (await http.get(path)).json()
            assert expected.items() <= record.items(), path
        (model,) = (await http.get("/v1/models")).json()["data"]
        assert MODEL.items() <= model.items()
        assert isinstance(model["created"], int)
        known = (await http.get("/v1/audio/voices")).json()["aliases"]
    assert (set(known), set(known.values())) == (set(VOICE_ALIASES), {"slt", "rms"})


async def test_speech_batch_returns_a_result_or_error_per_item_in_order(start: Start) -> None:
    def script(request: Request) -> list[Step]:
        return [ErrorText("invalid request: text: expected words")] if request["text"] == b"!" else SPOKEN

    running = await start(script)
    items = [{"input": "one"}, {"input": "!"}, {"input": "two", "voice": "rms", "response_format": "wav"}]
    async with running.http() as http:
        record = (await http.post("/v1/audio/speech/batch", json={"items": items, "response_format": "pcm"})).json()
    assert [each["status"] for each in record["results"]] == ["success", "error", "success"]
    assert (record["total"], record["succeeded"], record["failed"]) == (3, 2, 1)
    assert len(base64.b64decode(record["results"][0]["audio_data"])) == 2 * NUM_SAMPLES
    assert record["results"][1]["error"] == "input: expected words"
    assert record["results"][2]["media_type"] == "audio/wav"
    wav = base64.b64decode(record["results"][2]["audio_data"])
    assert wav[:44] == wav_header(24_000, 2 * NUM_SAMPLES)
    assert len(wav) == 44 + 2 * NUM_SAMPLES


async def test_audio_of_a_batch_is_encoded_part_by_part() -> None:
    audio = bytearray(range(256)) * 1000
    fields: list[dict[str, Any]] = [{"index": 0, "faults": []}, {"index": 1, "error": '"'}, {"index": 2}]
    results = [ItemResult(fields[0], audio), ItemResult(fields[1]), ItemResult(fields[2], audio)]
    parts = [part async for part in batch_parts(results)]
    assert max(map(len, parts)) <= 4 * PART_BYTES // 3, "as other responses have to wait for each part"
    record = json.loads(b"".join(parts))
    assert [base64.b64decode(one.pop("audio_data", "")) for one in record["results"]] == [audio, b"", audio]
    assert record["results"] == fields
    assert (record["total"], record["succeeded"], record["failed"]) == (3, 2, 1)


async def test_speech_batch_audio_bytes_are_limited(start: Start) -> None:
    num_bytes = 2 * NUM_SAMPLES
    async with (await start(limits=Limits(max_batch_bytes=num_bytes + 1, drain_s=1))).http() as http:
        for num_items, num_failed in ((1, 0), (3, 2)):
            items = [{"input": "a", "response_format": "pcm"}] * num_items
            record = (await http.post("/v1/audio/speech/batch", json={"items": items})).json()
            assert record["failed"] >= num_failed
            assert sum(len(base64.b64decode(each.get("audio_data", ""))) for each in record["results"]) <= num_bytes


async def test_batch_audio_counts_as_held_until_the_client_reads_it(start: Start) -> None:
    one = 4 * 2 * NUM_SAMPLES // 3  # as base64, of what a caller alone may have: half
    running = await start(limits=Limits(max_held_bytes=3 * one, drain_s=1))
    items = [{"input": "a", "response_format": "pcm"}] * 2
    (reader, writer), made = await connect_slowly(running)
    made.transport.set_write_buffer_limits(1)
    body = json.dumps({"items": items[:1]}).encode()
    writer.write(b"POST /v1/audio/speech/batch HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
    writer.write(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    async with asyncio.timeout(PATIENCE_S), running.http() as http:
        while not made.transport.get_write_buffer_size():
            await asyncio.sleep(0.01)
        record = (await http.post("/v1/audio/speech/batch", json={"items": items})).json()
        assert record["failed"] == 2, "as long as another answer is there"
        assert "more would exceed the limit" in record["results"][0]["error"]
        writer.transport.resume_reading()
        assert b'"succeeded": 1' in await reader.read()
        while (await http.post("/v1/audio/speech/batch", json={"items": items})).json()["failed"] != 1:
            await asyncio.sleep(0.01)
    writer.close()


async def test_internal_batch_failure_cancels_the_other_items() -> None:
    has_begun, is_cancelled = asyncio.Event(), asyncio.Event()

    async def speak() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_cancelled.set()

    async def fail() -> None:
        await has_begun.wait()
        raise TypeError

    with pytest.raises(ExceptionGroup):
        async with asyncio.timeout(PATIENCE_S):
            await together([speak(), fail()])
    assert is_cancelled.is_set()


async def test_only_health_is_served_without_a_key(start: Start) -> None:
    running = await start(keys=(KEY, "another-key-of-ours"))
    assert (await running.openai(api_key=KEY).audio.speech.create(**REQUEST)).content
    with pytest.raises(openai.AuthenticationError):
        await running.openai(api_key=KEY[:-1]).audio.speech.create(**REQUEST)
    async with running.http() as http:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert (await http.get(path)).status_code == 401, path
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).status_code == 200
        for header in (b"Bearer \xff\xfe", f"Basic {KEY}".encode(), b"", b"Bearer", f"Bearer {KEY} {KEY}".encode()):
            assert (await http.get("/v1/models", headers={"authorization": header})).status_code == 401, header
        for header in (f"bearer {KEY}", f"BEARER  {KEY}"):
            assert (await http.get("/v1/models", headers={"authorization": header})).status_code == 200, header


@pytest.mark.parametrize(
    ("origin", "host", "keys", "status"),
    [
        (None, "127.0.0.1:8003", (), 200),
        ("https://example.com", "127.0.0.1:8003", (), 403),
        ("http://example.com:8003", "example.com:8003", (), 403),
        ("null", "127.0.0.1:8003", (), 403),
        ("http://[", "127.0.0.1:8003", (), 403),
        ("http://127.0.0.1:8080", "127.0.0.1:8003", (), 403),
        ("http://127.0.0.1:8003", "127.0.0.1:8003", (), 200),
        ("http://localhost:8003", "localhost:8003", (), 200),
        ("http://[::1]:8003", "[::1]:8003", (), 200),
        ("https://example.com", "127.0.0.1:8003", (KEY,), 200),
    ],
)
async def test_cross_origin_request_requires_a_key(
    start: Start, origin: str | None, host: str, keys: tuple[str, ...], status: int
) -> None:
    headers = {"host": host, "authorization": f"Bearer {KEY}"} | ({} if origin is None else {"origin": origin})
    async with (await start(keys=keys)).http() as http:
        assert (await http.post("/v1/audio/speech", json=REQUEST, headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("site", "keys", "status"), [("cross-site", (), 403), ("cross-site", (KEY,), 200), ("same-origin", (), 200)]
)
async def test_page_of_another_site_cannot_embed_a_preview_without_a_key(
    start: Start, site: str, keys: tuple[str, ...], status: int
) -> None:
    headers = {"authorization": f"Bearer {KEY}", "sec-fetch-site": site}
    async with (await start(keys=keys)).http() as http:
        assert (await http.get("/v1/audio/voices/slt/preview", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:9603", True),
        ("LOCALHOST:1", True),
        ("[::1]:8003", True),
        ("[fe80::1%eth0]", True),
        ("127.0.0.1:9603.evil.example", False),
        ("127.0.0.1:evil.example", False),
        ("[::1]evil.example", False),
        ("[::1]:1.evil.example", False),
        ("evil.example#127.0.0.1", False),
        ("evil@127.0.0.1", False),
        ("127.0.0.1/evil.example", False),
        ("::1", False),
        ("evil.example", False),
        ("", False),
    ],
)
def test_address_check_accepts_only_plain_ip_hosts(place: str, expected: bool) -> None:
    assert is_address(place) == expected


APP = "https://app.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [((APP,), APP, APP), ((APP, "http://b"), "http://b", "http://b"), (("*",), APP, "*"), ((APP,), "http://c", None)],
)
async def test_configured_origins_pass_cors(
    start: Start, keys: tuple[str, ...], origins: tuple[str, ...], origin: str, allowed: str | None
) -> None:
    running = await start(keys=keys, origins=origins)
    key = {"authorization": f"Bearer {KEY}"}
    async with running.http() as http:
        before = await http.options("/v1/audio/speech", headers=PREFLIGHT | {"origin": origin})
        answer = await http.post("/v1/audio/speech", json=REQUEST, headers=key | {"origin": origin})
        named = {"origin": origin, "host": "gateway.example", "accept-language": "en"}
        listed = await http.get("/v1/audio/voices", headers=key | named)
    assert before.headers.get("access-control-allow-origin") == allowed
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert "access-control-allow-credentials" not in answer.headers
    if not keys:
        opened = await status(running, "/v1/audio/speech/stream", origin=origin)
        assert opened == (403 if allowed is None else 101)
    if allowed is None:
        assert (before.status_code, answer.status_code) == (400, 200 if keys else 403)
        return
    assert (before.status_code, answer.status_code, listed.status_code) == (200, 200, 200)
    assert "x-stainless-os" in before.headers["access-control-allow-headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    exposed = answer.headers["access-control-expose-headers"]
    assert {"x-request-id", "stretto-attempts", "x-vllm-omni-total-tokens"} <= set(exposed.split(", "))


async def test_no_cors_headers_without_configured_origins(start: Start) -> None:
    async with (await start(keys=(KEY,))).http() as http:
        before = await http.options("/v1/audio/speech", headers=PREFLIGHT | {"origin": APP})
        answer = await http.get("/v1/models", headers={"authorization": f"Bearer {KEY}", "origin": APP})
    assert (before.status_code, answer.status_code) == (401, 200)
    assert not [name for each in (before, answer) for name in each.headers if name.startswith("access-control")]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_oversized_body_is_refused_with_413(start: Start, is_chunked: bool) -> None:
    running = await start(limits=Limits(max_json_bytes=1000, drain_s=1))

    async def parts():  # type: ignore[no-untyped-def]
        for _ in range(3):
            yield b" " * 500

    content = parts() if is_chunked else b" " * 1500
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_stalled_upload_gets_408(start: Start) -> None:
    running = await start(limits=Limits(stall_s=0.2, drain_s=1))

    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_endless_upload_gets_408(start: Start) -> None:
    running = await start(limits=Limits(upload_s=0.3, drain_s=1))
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    answer = asyncio.ensure_future(reader.readline())
    for _ in range(500):
        writer.write(b"1\r\n \r\n")
        await asyncio.sleep(0.02)
        if answer.done():
            break
    assert (await asyncio.wait_for(answer, PATIENCE_S)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_only_large_incoming_bodies_are_limited(start: Start) -> None:
    running = await start(limits=Limits(max_held_bytes=200_000, drain_s=1))
    host, port = running.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"
    writer.write(head + b" " * 160_000)
    large, json_type = b" " * 120_000, {"content-type": "application/json"}
    async with running.http() as http:
        for status in (503, 400):  # as long as the other body is there, and afterwards
            async with asyncio.timeout(PATIENCE_S):
                while (await http.post("/v1/audio/speech", content=large, headers=json_type)).status_code != status:
                    await asyncio.sleep(0.01)
            assert (await http.post("/v1/audio/speech", json=REQUEST)).status_code == 200
            writer.close()


async def test_held_json_is_counted_by_its_parsed_size(start: Start) -> None:
    running = await start(limits=Limits(max_held_bytes=2_000_000, drain_s=1))
    values, text = b"[" + b"[]," * 20_000 + b"[]]", b'"' + b"a" * 60_000 + b'"'
    async with running.http() as http:
        for path in ("/v1/audio/speech", "/v1/chat/completions"):
            for content, status in ((values, 503), (text, 400)):
                answer = await http.post(path, content=content, headers={"content-type": "application/json"})
                assert answer.status_code == status, answer.text
        form = {"file": ("a.wav", values)}
        assert (await http.post("/v1/audio/transcriptions", files=form, data={"model": "x"})).status_code != 503


BAD_BODIES = [
    ("GET", "/nowhere", b"", 404),
    ("GET", "/v1/audio/speech", b"", 405),
    ("POST", "/v1/audio/speech", b"{", 400),
    ("POST", "/v1/audio/speech", b"\xff", 400),
    ("POST", "/v1/audio/speech", b"[" * 60_000, 400),
    ("POST", "/v1/audio/speech", b"[" * 66_000, 413),
    ("POST", "/v1/chat/completions", b"[" * 66_000, 413),
    ("POST", "/v1/audio/speech", b'{"seed": ' + b"9" * 5000 + b"}", 400),
]


async def test_errors_have_the_openai_format(start: Start) -> None:
    async with (await start()).http() as http:
        for method, path, content, status in BAD_BODIES:
            answer = await http.request(method, path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == status, (path, content[:9])
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_gateway_readiness_follows_the_server(start: Start) -> None:
    running = await start()
    async with running.http() as http:
        assert (await http.get("/health/ready")).status_code == 200
        running.behind.is_ready = False
        assert (await http.get("/health/ready")).status_code == 503
        assert (await http.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ('{"model": "voice", "configuration": "sha256:00"}', {"model": "voice", "configuration": "sha256:00"}),
        ('{"model": "voice", "revision": 3, "address": "10.0.0.1"}', {"model": "voice"}),
        ("triton", {}),
        ('["voice"]', {}),
    ],
    ids=["complete", "other fields", "no JSON", "no object"],
)
async def test_health_has_the_model_and_its_configuration(start: Start, name: str, served: dict[str, str]) -> None:
    running = await start(keys=(KEY,))
    running.behind.name = name
    async with running.http() as http:
        assert (await http.get("/health")).json() == {"status": "ready"} | served
        running.behind.is_ready = False
        answer = await http.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})


async def test_gateway_is_not_ready_if_the_server_does_not_respond(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start()
    monkeypatch.setattr(app, "READY_S", 0.1)
    monkeypatch.setattr(running.app.state.gateway.client, "ready", asyncio.Event().wait)
    async with running.http() as http:
        assert (await http.get("/health/ready", timeout=PATIENCE_S)).status_code == 503


async def test_unreachable_server_yields_503_with_retry_after(start: Start) -> None:
    running = await start()
    await running.behind.stop()
    async with running.http() as http:
        answer = await http.get("/v1/models")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "127.0.0.1" not in answer.text


async def test_one_key_at_its_limit_does_not_block_other_keys(start: Start) -> None:
    go = asyncio.Event()
    running = await start(
        lambda request: SPOKEN if request["text"] == b"A cat." else [Until(go), *SPOKEN],
        limits=Limits(max_active=2, drain_s=1),
        keys=(KEY, "another-key-of-ours"),
    )
    slow, other = running.openai(api_key=KEY), running.openai(api_key="another-key-of-ours")
    asked = [asyncio.ensure_future(slow.audio.speech.create(**REQUEST | {"input": "A dog."})) for _ in range(3)]
    async with asyncio.timeout(PATIENCE_S):
        while (admission := running.app.state.gateway.admission).num_waiting < 2:
            await asyncio.sleep(0.01)
    assert (await other.audio.speech.create(**REQUEST)).content
    assert (admission.num_active, admission.num_waiting) == (1, 2)
    go.set()
    await asyncio.gather(*asked)
    assert admission.num_active == 0


async def test_model_list_follows_a_changed_or_missing_model(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "REFRESH_S", 0.0)
    running = await start()
    async with running.http() as http:
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        running.behind.profile = PROFILE | {"family": "other"}
        async with asyncio.timeout(PATIENCE_S):
            while (await http.get("/v1/models")).json()["data"][0]["id"] != "other":
                await asyncio.sleep(0.01)
        await running.behind.stop()
        async with asyncio.timeout(PATIENCE_S):
            while (await http.get("/v1/models")).status_code != 503:
                await asyncio.sleep(0.01)


async def test_profile_is_dropped_only_after_three_failed_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "REFRESH_S", -1.0)  # every profile is too old
    known, gone = ModelProfile("tiny", 24_000, 100), ServerUnavailable("gone")
    answers = AsyncMock(side_effect=[known, gone, gone, known, gone, gone, gone, gone])
    made = catalogue.Catalogue(Mock(profile=answers), {})
    assert (await made.profile()).family == "tiny"
    for _ in range(6):
        assert (await made.profile()).family == "tiny"
        assert made._asking is not None
        await made._asking
    assert made.family == ""
    with pytest.raises(ApiError, match="accepts no requests now"):
        await made.profile()
    unreadable = Mock(profile=AsyncMock(side_effect=ValueError("profile: expected a sample rate")))
    with pytest.raises(ApiError, match="profile: expected a sample rate"):
        await catalogue.Catalogue(unreadable, {}).profile()


async def test_gateway_metrics_count_completed_and_failed_speech(start: Start) -> None:
    def script(request: Request) -> list[Step]:
        return SPOKEN if request["text"] == b"A cat." else [Abort(grpc.StatusCode.INTERNAL, "")]

    running = await start(script)
    async with running.http() as http:
        await http.post("/v1/audio/speech", json=REQUEST)
        await http.post("/v1/audio/speech", json=REQUEST | {"input": "A dog."})
    assert await running.metric("audio_ttfp_seconds_count") == 1
    assert await running.metric("audio_rtf_count") == 1
    assert await running.metric("audio_left_total") == 1
    assert await running.metric("audio_skipped_total") == 0
    assert await running.metric("gateway_answers_total") >= 2


async def test_each_request_has_a_log_line_without_content(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    running = await start([ErrorText("invalid request: text: expected words, got 'my secret'")], keys=(KEY,))
    async with running.http() as http:
        headers = {"authorization": f"Bearer {KEY}"}
        answer = await http.post("/v1/audio/speech?secret", json=REQUEST | {"input": "my secret"}, headers=headers)
    assert answer.status_code == 400
    lines = [record.getMessage() for record in caplog.records if record.name == "stretto_gateway"]
    assert lines == [line for line in lines if line.startswith(answer.headers["x-request-id"])]
    assert "POST /v1/audio/speech 400" in lines[0]
    assert not any("secret" in line or KEY in line for line in lines)


async def test_gateway_internal_error_is_logged_but_hidden_from_the_client(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    running = await start()
    monkeypatch.setattr(running.app.state.gateway.catalogue, "profile", None)
    async with httpx.AsyncClient(base_url=running.url) as http:
        answer = await http.get("/v1/models")
    assert answer.status_code == 500
    request_id = answer.json()["error"]["message"].removeprefix("internal error ")
    assert answer.headers["x-request-id"] == request_id
    assert f"{request_id} failed" in caplog.text
    assert f"{request_id} GET /v1/models 500 " in caplog.text
    assert await running.metric('gateway_answers_total{route="/v1/models",status="500"}') == 1
    assert "TypeError" in caplog.text
