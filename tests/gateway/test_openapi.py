"""`/openapi.json` documents every response, including errors, and errors mention the invalid field."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from html import escape, unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stretto_gateway.app import make_app
from stretto_gateway.config import GatewayConfig
from stretto_gateway.fields import MAX_BYTES
from stretto_gateway.page import HEADERS
from stretto_gateway.routes import installed_routes
from tests.client.fake_server import ErrorText, Request, Step
from tests.gateway.conftest import HEARD, SPOKEN, Start
from tests.gateway.test_chat import task
from tests.gateway.test_fuzz import Door, resolved, values
from tests.gateway.test_page import ADDRESS, KEY, NAMES, Elements
from tests.gateway.test_transcription import FILE, TRANSLATES
from tests.gateway.test_voices import CLONES, FORM, RECORDING, exported_voice
from tests.tiers import by_night

EXAMPLES = [10, *by_night(80)]  # an operation
TALKS = [
    task("dialogue", needs=[], also=["text", "audio", "image"]),
    task("chat", needs=[], also=["text"], speaks=False),
]
EVERYTHING = CLONES | {"languages": ["english"], "tasks": [*CLONES["tasks"], TRANSLATES["tasks"][-1], *TALKS]}
REFUSED = "There is none."  # as a text: the server does not speak it
SPEECH, SPEECHES = {"input": "A cat."}, [{"input": "A cat."}, {"input": REFUSED}]
CHAT = {"messages": [{"role": "user", "content": "How are you?"}]}
SPOKEN_CHAT = CHAT | {"modalities": ["text", "audio"], "temperature": 3}
VERIFY = "/v1/audio/verify"  # which starts a process for each file
CANCEL = "/v1/audio/jobs/{job_id}/cancel"  # which has no body
FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
EXPORTED = exported_voice()
GOOD = [
    *(("post", "/v1/audio/speech", {"json": SPEECH | {"response_format": name}}) for name in ("mp3", "opus", "aac")),
    *(("post", "/v1/audio/speech", {"json": SPEECH | {"response_format": name}}) for name in ("flac", "wav", "pcm")),
    ("post", "/v1/audio/speech", {"json": SPEECH | {"stream_format": "sse", "timestamps": True}}),
    ("post", "/v1/audio/speech", {"json": SPEECH | {"stream": False}}),
    ("post", "/v1/audio/speech/batch", {"json": {"items": SPEECHES, "response_format": "wav"}}),
    *(
        ("post", f"/v1/audio/{path}", {"files": {"file": FILE}, "data": {"response_format": name}})
        for name in FORMATS
        for path in ("transcriptions", "translations")
    ),
    ("post", "/v1/audio/transcriptions", {"files": {"file": FILE}, "data": {"stream": "true"}}),
    ("post", VERIFY, {"files": {"file": FILE}}),
    *(("post", "/v1/chat/completions", {"json": body}) for body in (CHAT, SPOKEN_CHAT, CHAT | {"stream": True})),
    ("post", "/v1/realtime/client_secrets", {"json": {"session": {"type": "realtime"}}}),
    ("get", "/v1/audio/speech/{request_id}", {"request_id": None}),
    ("get", "/v1/audio/speech/{request_id}/receipt", {"request_id": None}),
    ("get", "/v1/audio/receipts/key", {}),
    ("get", "/v1/models", {}),
    ("get", "/v1/usage", {}),
    ("get", "/v1/models/{name}", {"name": "tts-1"}),
    ("get", "/v1/audio/models", {}),
    ("post", "/v1/audio/voices", {"files": {"audio_sample": ("me.wav", RECORDING)}, "data": FORM}),
    ("get", "/v1/audio/voices", {}),
    ("get", "/v1/audio/voices/{name}/preview", {"name": "slt"}),
    ("get", "/v1/audio/voices/{voice_id}/export", {"voice_id": None}),
    ("post", "/v1/audio/voices/import", {"files": {"file": EXPORTED}}),
    ("delete", "/v1/audio/voices/{voice_id}", {"voice_id": None}),
    ("put", "/v1/audio/pronunciations", {"json": {"SQL": "sequel"}}),
    ("get", "/v1/audio/pronunciations", {}),
    ("get", "/v1/audio/pronunciations", {"params": {"format": "pls"}}),
    ("delete", "/v1/audio/pronunciations", {}),
    ("post", "/v1/audio/jobs", {"json": SPEECH}),
    ("get", "/v1/audio/jobs", {}),
    ("get", "/v1/audio/jobs/{job_id}", {"job_id": None}),
    ("get", "/v1/audio/jobs/{job_id}/content", {"job_id": None}),
    ("post", CANCEL, {"job_id": None}),
    ("delete", "/v1/audio/jobs/{job_id}", {"job_id": None}),
    ("get", "/health", {}),
    ("get", "/health/live", {}),
    ("get", "/health/ready", {}),
    ("get", "/metrics", {}),
]
OF_ADMINS = {("post", "/v1/load_lora_adapter"), ("post", "/v1/unload_lora_adapter")}  # tests/gateway/test_adapters.py
LONE = {"content": json.dumps({"input": "\ud800"}).encode(), "headers": {"content-type": "application/json"}}


def voice(**change: str) -> dict[str, Any]:
    return {"files": {"audio_sample": ("me.wav", RECORDING)}, "data": FORM | change}


BAD_VOICES = (
    (RECORDING, "header: expected the header of an exported voice"),
    (EXPORTED[:-1], "sha256: expected the digest"),
    (EXPORTED.replace(b"my own", b"MY OWN"), "sha256: expected the digest"),
    (EXPORTED[: EXPORTED.index(b"\n") + 1], "recording: expected 1 to 4194304 bytes"),
)


def heard(**change: str) -> dict[str, Any]:
    return {"files": {"file": FILE}, "data": change}


def asked(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# Of `/v1/audio/speech`: fields beside the text, the field of the error, and words of its message.
BAD_SPEECH: list[tuple[dict[str, Any], str, str]] = [
    *(({"voice": value}, "voice", "") for value in (3, {}, {"id": 3}, {"id": "nobody"}, "Rian")),
    ({"voice": "nobody"}, "voice", "voice: expected one of slt, rms"),
    ({"voice": {"id": "alloy", "more": []}}, "voice.more", ""),
    ({"body": 3}, "body", ""),
    ({"volume": 11}, "volume", ""),
    ({"x" * 300: 3}, "x" * 200, ""),
    ({"sample_rate": "high"}, "sample_rate", ""),
    ({"sample_rate": 22_050, "response_format": "opus"}, "sample_rate", ""),
    ({"sample_rate": -1, "response_format": "wav"}, "sample_rate", ""),
    ({"sample_rate": 1 << 32, "response_format": "flac"}, "sample_rate", ""),
    ({"input": None}, "input", ""),
    ({"input": 7}, "input", ""),
    ({"response_format": "mp4"}, "response_format", "'mp3', 'opus', 'aac'"),
    ({"speed": 4.1}, "speed", ""),
    ({"instructions": "a" * 16_384}, "instructions", ""),
    ({"instructions": ["Whisper."]}, "instructions", ""),
    ({"text_mode": "open"}, "text_mode", ""),
    ({"timestamps": True}, "timestamps", ""),
    ({"audio": {"top_k": "4" * 16_384}}, "audio", ""),
    ({"max_new_tokens": 0}, "max_new_tokens", ""),
    ({"max_new_tokens": "many"}, "max_new_tokens", ""),
    ({"stream": "perhaps"}, "stream", ""),
    ({"non_streaming_mode": 7}, "non_streaming_mode", ""),
    ({"language": 7}, "language", ""),
    ({"language": "zh"}, "language", ""),
    ({"task_type": "Song"}, "task_type", ""),
    ({"ref_audio": "http://169.254.169.254/latest"}, "ref_audio", "the gateway opens no URLs or files"),
    ({"ref_audio": ""}, "ref_audio", "expected 1 to"),
    ({"ref_audio": "AAAA" * 1_400_000}, "ref_audio", "expected at most"),
    ({"pronunciations": True}, "pronunciations", "expected an object of words and their spellings, got True"),
    ({"pronunciations": {"a": {"phonemes": "S"}}}, "pronunciations.a", ""),
    *(({"model": name}, "model", "") for name in ("gpt-4o", "gpt-5.1", "tts-", "audio", "gpt-4o-audio\n", "x/tts-1")),
    ({"model": "gpt-" + "audio-" * 20}, "model", ""),
    *(
        ({"input": text} | more, "input", words)
        for more in ({}, {"stream_format": "sse"})
        for text, words in (
            ("<speak>Tom & Ann</speak>", "SSML, got not well-formed (invalid token) at line 1, column 13"),
            ("😀", "input: expected text to speak, got only markup"),
        )
    ),
]
PART = "messages.0.content.0"
# The same of `/v1/chat/completions`, beside a question and for a spoken answer.
BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    (asked([]), "messages.0.content", ""),
    (asked(None), "messages.0.content", ""),
    (asked(["hello"]), PART, ""),
    (asked([{"type": "text"}]), f"{PART}.text", ""),
    (asked([{"type": "text", "text": 3}]), f"{PART}.text", ""),
    (asked([{"type": "text", "text": "Hello.", "cache_control": {}}]), f"{PART}.cache_control", ""),
    (asked([{"type": "image_url", "image_url": {}}]), f"{PART}.image_url.url", ""),
    (asked([{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]), f"{PART}.image_url.url", ""),
    (asked([{"type": "input_audio", "input_audio": {"data": "?"}}]), f"{PART}.input_audio.data", ""),
    (asked([{"type": "video_url"}]), f"{PART}.type", "Input should be 'text', 'input_audio' or 'image_url'"),
    ({"messages": [{"role": "user", "content": "Hello.", "name": "Ann"}]}, "messages.0.name", ""),
    ({"messages": None}, "messages", ""),
    ({"modalities": ["Text"] * 1000}, "modalities.0", ""),
    ({"max_completion_tokens": 0}, "max_completion_tokens", ""),
    ({"audio": {"voice": "alloy", "format": "opus9"}}, "audio.format", ""),
    ({"audio": {"voice": "nobody", "format": "wav"}}, "voice", ""),
    ({"n": 2}, "n", ""),
    ({"temperature": 11}, "temperature", "less than or equal to 10"),
    ({"tools": []}, "tools", ""),
    ({"model": "parrot"}, "model", ""),
]
BAD_ITEMS: list[tuple[dict[str, Any], str, str]] = [
    ({"items": [SPEECH, {"input": None}]}, "items.1.input", ""),
    ({"items": None}, "items", ""),
    ({"items": [SPEECH, SPEECH | {"text": "a" * MAX_BYTES}]}, "items.1.text", ""),
    ({"items": [SPEECH, SPEECH | {"audio": "a" * 9000}], "text": "a" * 9000}, "items.1.audio", ""),
    ({"items": [SPEECH], "text": "a" * MAX_BYTES}, "text", ""),
]
# Path, request, the field of the error, and words of its message.
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/audio/speech", {"json": {}}, "input", ""),
    ("/v1/audio/speech", LONE, "input", "input: expected text without lone surrogates, got one"),
    *(("/v1/audio/speech", {"json": SPEECH | fields}, *told) for fields, *told in BAD_SPEECH),
    *(("/v1/chat/completions", {"json": SPOKEN_CHAT | fields}, *told) for fields, *told in BAD_CHATS),
    *(("/v1/audio/speech/batch", {"json": fields}, *told) for fields, *told in BAD_ITEMS),
    *(
        ("/v1/audio/transcriptions", heard(**fields), param, "")
        for fields, param in (
            ({"temperature": "hot"}, "temperature"),
            ({"temperature": "11"}, "temperature"),
            ({"timestamp_granularities[]": "day"}, "timestamp_granularities[]"),
            ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
            ({"timestamp_granularities[]": "segment"}, "timestamp_granularities"),
            ({"prompt": "Names: Ada."}, "prompt"),
            ({"stream": "true", "response_format": "srt"}, "response_format"),
            ({"response_format": "lrc"}, "response_format"),
            ({"volume": "11"}, "volume"),
        )
    ),
    ("/v1/audio/transcriptions", {"data": {"model": "whisper-1"}}, "file", ""),
    *(
        (f"/v1/audio/{path}", {"files": {name: (None, text) for name, text in form.items()}}, field, "file, got text")
        for path, field, more in (
            ("transcriptions", "file", {}),
            ("translations", "file", {}),
            ("voices", "audio_sample", {"name": "mine", "consent": "yes"}),
        )
        for form in (more | {field: "cat.wav"}, more | {field: ""})
    ),
    ("/v1/audio/voices", {"data": FORM}, "audio_sample", ""),
    *(("/v1/audio/voices/import", {"files": {"file": data}}, "file", words) for data, words in BAD_VOICES),
    ("/v1/audio/voices/import", {"data": FORM}, "file", ""),
    ("/v1/audio/voices/import", {"files": {"file": EXPORTED}, "data": {"name": "other"}}, "name", ""),
    ("/v1/audio/voices/import", {"files": {"file": exported_voice(name="SLT")}}, "name", "no voice of"),
    (VERIFY, {"data": {"x": "y"}}, "file", ""),
    *(
        ("/v1/audio/voices", voice(**{field: value}), field, "")
        for field, value in (
            *(("name", ""), ("name", "x" * 101), ("consent", ""), ("ref_text", "x" * 4001), ("folder", "/etc")),
            *(("language", "x" * 41), ("gender", "x" * 41), ("description", "x" * 501)),
            ("model", "gpt-7"),
        )
    ),
]


def script(request: Request) -> list[Step]:
    if request.get("text") == REFUSED.encode():
        return [ErrorText("invalid request: text: expected another one")]
    return SPOKEN if request["task"] in (b"tts", b"dialogue") else HEARD


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    opened = Door(script, EVERYTHING, tmp_path_factory.mktemp("voices"), strict=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def schema(door: Door) -> dict[str, Any]:
    """Return the schema with undocumented fields forbidden."""
    schema = deepcopy(door.app.openapi())
    for each in schema["components"]["schemas"].values():
        if "properties" in each:
            each.setdefault("additionalProperties", False)
    return schema


def check(schema: dict[str, Any], method: str, path: str, answer: httpx.Response) -> None:
    """Check that the answer matches a response documented for this path."""
    known, status = schema["paths"][path][method]["responses"], str(answer.status_code)
    told = known.get(status) or known[f"{status[0]}XX"]
    assert answer.status_code < 500 or path == "/health/ready", answer.text
    media_type = answer.headers["content-type"].partition(";")[0]
    content = told["content"][media_type]["schema"]
    if media_type == "application/json":
        Draft202012Validator(content | {"components": schema["components"]}).validate(answer.json())


def test_routes_are_unique() -> None:
    app = make_app(GatewayConfig(""))
    methods = [(route, method) for route in app.routes for method in getattr(route, "methods", None) or ()]
    routes = [(method, route.path, type(route).__name__) for route, method in methods]  # a class may look at headers
    assert len(routes) == len(set(routes)), sorted(routes)


def ended_job(door: Door) -> str:
    """Return the id of the caller's job, once it has ended; the gateway runs only while it answers."""
    while not (job := door.ask("get", "/v1/audio/jobs").json()["data"][0])["ended_at"]:
        pass
    job_id: str = job["id"]
    return job_id


@pytest.mark.slow
def test_successful_responses_match_the_openapi_schema(door: Door, schema: dict[str, Any]) -> None:
    for method, path, options in GOOD:
        names = {name: options.pop(name) for name in ("name", "voice_id", "request_id", "job_id") if name in options}
        if "request_id" in names:
            names["request_id"] = door.ask("post", "/v1/audio/speech", json=SPEECH).headers["x-request-id"]
        if "voice_id" in names:
            names["voice_id"] = door.ask("get", "/v1/audio/voices").json()["data"][0]["id"]
        if "job_id" in names:
            names["job_id"] = ended_job(door)
        answer = door.ask(method, path.format(**names), **options)
        assert answer.status_code == 200, (method, path, answer.text)
        check(schema, method, path, answer)
    operations = {(method, path) for path, methods in schema["paths"].items() for method in methods}
    assert {(method, path) for method, path, _ in GOOD} == operations - OF_ADMINS - of_plugins()


def of_plugins() -> set[tuple[str, str]]:
    """Return the methods and paths of routes outside the gateway, which have their own tests."""
    routers = [
        route.router for route in installed_routes() if not type(route).__module__.startswith("stretto_gateway.")
    ]
    routes: list[Any] = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {(method.lower(), route.path) for route in routes if route.include_in_schema for method in route.methods}


@pytest.mark.parametrize(("path", "options", "param", "words"), BAD)
def test_refusals_name_their_field_and_reach_no_server(
    door: Door, schema: dict[str, Any], path: str, options: dict[str, Any], param: str, words: str
) -> None:
    num_asked = len(door.behind.requests)
    answer = door.ask("post", path, **options)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if param == "model" else 400, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(param)
    assert words in error["message"]
    check(schema, "post", path, answer)
    assert len(door.behind.requests) == num_asked


def encodable(value: Any) -> str:
    """Return a value as a form field."""
    return str(value).encode(errors="replace").decode()


def sent(fields: dict[str, Any], record: Any, media_type: str) -> dict[str, Any]:
    """Return httpx arguments that send a record as JSON, or as a form whose file fields are mostly files."""
    if media_type == "application/json" or not isinstance(record, dict):
        return {"content": json.dumps(record).encode(), "headers": {"content-type": media_type}}
    files = {name: FILE for name, told in fields.items() if "contentMediaType" in told and record.get(name)}
    return {"files": files, "data": {encodable(name): encodable(each) for name, each in record.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize(
    "path", sorted({path for method, path, options in GOOD if method == "post"} - {VERIFY, CANCEL})
)
def test_error_responses_match_the_schema_and_name_a_field(
    door: Door, schema: dict[str, Any], path: str, examples: int
) -> None:
    ((media_type, body),) = schema["paths"][path]["post"]["requestBody"]["content"].items()
    fields = resolved(body["schema"], schema["components"]["schemas"])["properties"]
    seen = set[int]()

    @given(values(body["schema"], schema["components"]["schemas"]))
    @example({"0.": 0})
    @settings(max_examples=examples, deadline=None)
    def send(record: Any) -> None:
        answer = door.ask("post", path, **sent(fields, record, media_type))
        check(schema, "post", path, answer)
        seen.add(answer.status_code)
        if answer.status_code == 400 and isinstance(record, dict):
            param = answer.json()["error"]["param"] or ""
            names = tuple(encodable(name)[:200] for name in record if name)  # they may contain points, too
            assert not param or param.partition(".")[0] in fields or param.startswith(names), param

    send()
    assert 400 in seen


@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: name.strip("./")))
@settings(max_examples=40, deadline=None)
def test_arbitrary_path_names_cause_no_internal_error(door: Door, schema: dict[str, Any], name: str) -> None:
    for method, path, param in (
        ("get", "/v1/models/{name}", "model"),
        ("delete", "/v1/audio/voices/{voice_id}", "voice"),
        ("get", "/v1/audio/speech/{request_id}", "id"),
    ):
        answer = door.ask(method, path.partition("{")[0] + quote(name, safe=""))
        check(schema, method, path, answer)
        assert answer.json()["error"]["param"] in (param, None)


@pytest.mark.slow
async def test_openapi_declares_keys_only_if_configured(start: Start) -> None:
    async with (await start()).http() as http:
        schema = (await http.get("/openapi.json")).json()
    assert "security" not in schema
    assert schema["info"]["version"] == version("stretto")
    async with (await start(keys=(KEY,), admin_keys=("admin-key-of-sixteen",))).http() as http:
        schema = (await http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})).json()
        assert schema["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
        assert schema["security"] == [{"key": []}]
        for path, methods in schema["paths"].items():
            for method in methods:
                is_open = methods[method].get("security") == []
                assert is_open == ((await http.request(method, path)).status_code != 401), path


@pytest.mark.slow
async def test_docs_page_needs_no_scripts_or_external_resources(start: Start) -> None:
    async with (await start(keys=(KEY,))).http() as http:
        answer = await http.get("/docs")
        schema = (await http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})).json()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in answer.text
            assert re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(operation["description"])) in answer.text
    for name in ("response_format", "timestamp_granularities[]", "audio_sample"):
        assert name in answer.text
    assert set(ADDRESS.findall(answer.text)) <= NAMES
    for tag, attributes in Elements(answer.text).found:
        assert tag not in ("script", "style", "iframe", "object")
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        for name in ("href", "src"):
            if name in attributes:
                assert attributes[name].startswith("page/")
    assert "`" not in answer.text
    speech = answer.text[answer.text.index("<h2><code>POST /v1/audio/speech</code></h2>") :]
    cells = re.findall(r"<td>(.*?)</td>", speech)
    assert cells[0] == "input", "what is required comes first"


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), (KEY,)])
async def test_docs_page_curl_example_runs(
    start: Start, keys: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(keys=keys)
    async with running.http() as http:
        page = (await http.get("/docs")).text
    assert page.index("<pre><code>curl") < page.index("<table>")
    line = unescape(page.partition("<pre><code>")[2].partition("</code></pre>")[0])
    monkeypatch.setenv("KEY", KEY)
    shell = ["bash", "-euc", line.replace("curl ", "curl -sf ")]
    done = await asyncio.to_thread(subprocess.run, shell, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, (line, done)
    assert (tmp_path / "speech.mp3").stat().st_size > 100
    assert running.behind.requests[0]["text"] == b"It is twenty past nine."
