"""`/openapi.json` documents every response, including errors, and errors mention the invalid field."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stretto_gateway.app import make_app
from stretto_gateway.config import GatewayConfig
from stretto_gateway.page import HEADERS
from tests.client.fake_server import Chunk, ErrorText, Request, Step
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.test_chat import task
from tests.gateway.test_fuzz import Door, resolved, values
from tests.gateway.test_page import ADDRESS, KEY, NAMES, Elements
from tests.gateway.test_transcription import FILE, TRANSLATES
from tests.gateway.test_voices import CLONES, FORM, RECORDING
from tests.tiers import by_night

EXAMPLES = [20, *by_night(80)]  # an operation
TALKS = [task("dialogue", needs=[], also=["text", "audio"]), task("chat", needs=[], also=["text"], speaks=False)]
EVERYTHING = CLONES | {"tasks": [*CLONES["tasks"], TRANSLATES["tasks"][-1], *TALKS]}
WRITTEN = [Chunk(0, None, text="a cat", is_final=True, is_last=True)]
REFUSED = "There is none."  # as a text: the server does not speak it
SPEECH, SPEECHES = {"input": "A cat."}, [{"input": "A cat."}, {"input": REFUSED}]
CHAT = {"messages": [{"role": "user", "content": "How are you?"}]}
SPOKEN_CHAT = CHAT | {"modalities": ["text", "audio"]}
BAD_CHAT = {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}
HEARD = ("json", "text", "verbose_json", "srt", "vtt")
GOOD = [
    *(("post", "/v1/audio/speech", {"json": SPEECH | {"response_format": name}}) for name in ("mp3", "opus", "aac")),
    *(("post", "/v1/audio/speech", {"json": SPEECH | {"response_format": name}}) for name in ("flac", "wav", "pcm")),
    ("post", "/v1/audio/speech", {"json": SPEECH | {"stream_format": "sse", "timestamps": True}}),
    ("post", "/v1/audio/speech/batch", {"json": {"items": SPEECHES, "response_format": "wav"}}),
    *(
        ("post", f"/v1/audio/{path}", {"files": {"file": FILE}, "data": {"response_format": name}})
        for name in HEARD
        for path in ("transcriptions", "translations")
    ),
    ("post", "/v1/audio/transcriptions", {"files": {"file": FILE}, "data": {"stream": "true"}}),
    ("post", "/v1/audio/verify", {"files": {"file": FILE}}),
    *(("post", "/v1/chat/completions", {"json": body}) for body in (CHAT, SPOKEN_CHAT, CHAT | {"stream": True})),
    ("post", "/v1/realtime/client_secrets", {"json": {"session": {"type": "realtime"}}}),
    ("get", "/v1/audio/speech/{request_id}", {"request_id": None}),
    ("get", "/v1/models", {}),
    ("get", "/v1/usage", {}),
    ("get", "/v1/models/{name}", {"name": "tts-1"}),
    ("get", "/v1/audio/models", {}),
    ("post", "/v1/audio/voices", {"files": {"audio_sample": ("me.wav", RECORDING)}, "data": FORM}),
    ("get", "/v1/audio/voices", {}),
    ("delete", "/v1/audio/voices/{voice_id}", {"voice_id": None}),
    ("put", "/v1/audio/pronunciations", {"json": {"SQL": "sequel"}}),
    ("get", "/v1/audio/pronunciations", {}),
    ("get", "/v1/audio/pronunciations", {"params": {"format": "pls"}}),
    ("delete", "/v1/audio/pronunciations", {}),
    ("get", "/health", {}),
    ("get", "/health/live", {}),
    ("get", "/health/ready", {}),
    ("get", "/metrics", {}),
]
# Their bodies are session descriptions: tests/gateway/test_webrtc.py.
OF_CALLS = {("post", "/v1/realtime/calls"), ("post", "/v1/realtime/calls/{call_id}/hangup")}
LONE = {"content": json.dumps({"input": "\ud800"}).encode(), "headers": {"content-type": "application/json"}}


def voice(**change: str) -> dict[str, Any]:
    return {"files": {"audio_sample": ("me.wav", RECORDING)}, "data": FORM | change}


def heard(**change: str) -> dict[str, Any]:
    return {"files": {"file": FILE}, "data": change}


# Path, request, the field of the error, and words of its message.
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/audio/speech", {"json": {}}, "input", ""),
    *(("/v1/audio/speech", {"json": SPEECH | {"voice": value}}, "voice", "") for value in (3, {}, {"id": 3})),
    ("/v1/audio/speech", {"json": SPEECH | {"body": 3}}, "body", ""),
    ("/v1/audio/speech", {"json": SPEECH | {"sample_rate": "high"}}, "sample_rate", ""),
    ("/v1/audio/speech", {"json": SPEECH | {"x" * 300: 3}}, "x" * 200, ""),
    ("/v1/audio/speech", {"json": {"input": None}}, "input", ""),
    ("/v1/audio/speech", {"json": SPEECH | {"response_format": "mp4"}}, "response_format", "'mp3', 'opus', 'aac'"),
    ("/v1/audio/speech", LONE, "input", "input: expected text without lone surrogates, got one"),
    *(
        ("/v1/audio/speech", {"json": {"input": text} | more}, "input", words)
        for more in ({}, {"stream_format": "sse"})
        for text, words in (
            ("<speak>Tom & Ann</speak>", "SSML, got not well-formed (invalid token) at line 1, column 13"),
            ("😀", "input: expected text to speak, got only markup"),
        )
    ),
    ("/v1/audio/speech/batch", {"json": {"items": [{"input": "A cat."}, {"input": None}]}}, "items.1.input", ""),
    ("/v1/audio/speech/batch", {"json": {"items": None}}, "items", ""),
    ("/v1/chat/completions", {"json": BAD_CHAT}, "messages.0.content.0.text", ""),
    ("/v1/chat/completions", {"json": {"messages": None}}, "messages", ""),
    ("/v1/chat/completions", {"json": CHAT | {"modalities": ["Text"] * 1000}}, "modalities.0", ""),
    ("/v1/chat/completions", {"json": CHAT | {"model": "parrot"}}, "model", ""),
    ("/v1/audio/transcriptions", heard(temperature="hot"), "temperature", ""),
    ("/v1/audio/transcriptions", heard(**{"timestamp_granularities[]": "day"}), "timestamp_granularities[]", ""),
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
    ("/v1/audio/voices", voice(name=""), "name", ""),
    ("/v1/audio/voices", voice(name="x" * 101), "name", ""),
    ("/v1/audio/voices", voice(consent=""), "consent", ""),
    ("/v1/audio/voices", voice(ref_text="x" * 4001), "ref_text", ""),
    ("/v1/audio/voices", voice(folder="/etc"), "folder", ""),
    ("/v1/audio/voices", voice(model="gpt-7"), "model", ""),
    ("/v1/audio/speech", {"json": SPEECH | {"pronunciations": {"a": {"phonemes": "S"}}}}, "pronunciations.a", ""),
]


def script(request: Request) -> list[Step]:
    if request.get("text") == REFUSED.encode():
        return [ErrorText("invalid request: text: expected another one")]
    return SPOKEN if request["task"] in (b"tts", b"dialogue") else WRITTEN


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    opened = Door(script, EVERYTHING, tmp_path_factory.mktemp("voices"), strict=True)
    yield opened
    opened.close()


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with undocumented fields forbidden."""
    schema = deepcopy(schema)
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
    routes = [(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()]
    assert len(routes) == len(set(routes)), sorted(routes)


def test_successful_responses_match_the_openapi_schema(door: Door) -> None:
    schema = strict(door.app.openapi())
    for method, path, options in GOOD:
        names = {name: options.pop(name) for name in ("name", "voice_id", "request_id") if name in options}
        if "request_id" in names:
            names["request_id"] = door.ask("post", "/v1/audio/speech", json=SPEECH).headers["x-request-id"]
        if "voice_id" in names:
            names["voice_id"] = door.ask("get", "/v1/audio/voices").json()["data"][0]["id"]
        answer = door.ask(method, path.format(**names), **options)
        assert answer.status_code == 200, (method, path, answer.text)
        check(schema, method, path, answer)
    operations = {(method, path) for path, methods in schema["paths"].items() for method in methods}
    assert {(method, path) for method, path, _ in GOOD} == operations - OF_CALLS


@pytest.mark.parametrize(("path", "options", "param", "words"), BAD)
def test_api_errors_use_the_request_field_names(
    door: Door, path: str, options: dict[str, Any], param: str, words: str
) -> None:
    answer = door.ask("post", path, **options)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if param == "model" else 400, param)
    assert error["message"].startswith(param)
    assert words in error["message"]
    check(strict(door.app.openapi()), "post", path, answer)


def encodable(value: Any) -> str:
    """Return a value as a form field."""
    return str(value).encode(errors="replace").decode()


def sent(fields: dict[str, Any], record: Any, media_type: str) -> dict[str, Any]:
    """Return httpx arguments that send a record as JSON, or as a form whose file fields are mostly files."""
    if media_type == "application/json" or not isinstance(record, dict):
        return {"content": json.dumps(record).encode(), "headers": {"content-type": media_type}}
    files = {name: FILE for name, told in fields.items() if "contentMediaType" in told and record.get(name)}
    return {"files": files, "data": {encodable(name): encodable(each) for name, each in record.items()}}


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("path", sorted({path for method, path, options in GOOD if method == "post"}))
def test_error_responses_match_the_schema_and_name_a_field(door: Door, path: str, examples: int) -> None:
    schema = strict(door.app.openapi())
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
def test_arbitrary_path_names_cause_no_internal_error(door: Door, name: str) -> None:
    schema = strict(door.app.openapi())
    for method, path, param in (
        ("get", "/v1/models/{name}", "model"),
        ("delete", "/v1/audio/voices/{voice_id}", "voice"),
        ("get", "/v1/audio/speech/{request_id}", "id"),
    ):
        answer = door.ask(method, path.partition("{")[0] + quote(name, safe=""))
        check(schema, method, path, answer)
        assert answer.json()["error"]["param"] in (param, None)


async def test_openapi_declares_keys_only_if_configured(start: Start) -> None:
    async with (await start()).http() as http:
        assert "security" not in (await http.get("/openapi.json")).json()
    async with (await start(keys=(KEY,))).http() as http:
        schema = (await http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})).json()
        assert schema["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
        assert schema["security"] == [{"key": []}]
        for path, methods in schema["paths"].items():
            for method in methods:
                is_open = methods[method].get("security") == []
                assert is_open == ((await http.request(method, path)).status_code != 401), path


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
