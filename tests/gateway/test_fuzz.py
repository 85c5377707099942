"""Invalid bodies, headers and paths get a 4xx response, and the gateway continues."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stretto_gateway.app import make_app
from stretto_gateway.chat import ChatRequest
from stretto_gateway.config import GatewayConfig
from stretto_gateway.fields import Body
from stretto_gateway.jobs.work import JobOptions
from stretto_gateway.speech_batch import BatchRequest
from stretto_gateway.speech_request import SpeechRequest
from tests.client.fake_server import PROFILE, FakeServer, Request, Step
from tests.gateway.conftest import SPOKEN
from tests.tiers import by_night

pytestmark = pytest.mark.slow
PATHS = ("/v1/audio/speech", "/v1/audio/speech/batch", "/v1/chat/completions")
AS_JSON = {"content-type": "application/json"}
REFUSED = {400, 404, 405, 408, 413, 429}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["tts-1", "alloy", "wav", "mp3", "pcm", "sse", "user", "text", "input_audio", "A cat.", "\ud800"])
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a reference refers to."""
    return definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def values(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Draw values that mostly match the schema."""
    schema = resolved(schema, definitions)
    if "anyOf" in schema:
        return st.one_of([values(each, definitions) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")])) | JSON
    match schema.get("type"):
        case "object" if "properties" in schema:
            fields = {name: values(each, definitions) for name, each in schema["properties"].items()}
            needed = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(needed, optional=fields | {"unknown": JSON}) | JSON
        case "array":
            return st.lists(values(schema["items"], definitions), max_size=3) | JSON
        case "string":
            return st.sampled_from(["A cat.", "tts-1", "alloy"]) | SCALARS
        case _:
            return SCALARS | JSON


class Door:
    """Gateway in front of a fake server, which runs while a request runs."""

    def __init__(
        self,
        script: Callable[[Request], list[Step]],
        profile: dict[str, Any],
        voices: Path | None = None,
        strict: bool = False,
    ):
        self.runner = asyncio.Runner()
        self.behind = FakeServer(script, profile=profile)
        jobs = () if voices is None else (JobOptions(voices / "jobs"),)
        server = self.runner.run(self.behind.start())
        key = Ed25519PrivateKey.generate()
        self.app = make_app(GatewayConfig(server, voices=voices, strict=strict, routes=jobs, signing_key=key))
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.runner.run(self._lifespan.__aenter__())

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return httpx's response; exceptions of the application are raised."""

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://x") as client:
                return await client.request(method, path, **options)

        return self.runner.run(ask())

    def close(self) -> None:
        """End gateway and server."""
        self.runner.run(self._lifespan.__aexit__(None, None, None))
        self.runner.run(self.behind.stop())
        self.runner.close()


@pytest.fixture(scope="module")
def door() -> Any:
    opened = Door(lambda _: SPOKEN, PROFILE)
    yield opened
    opened.close()


def check(answer: httpx.Response) -> None:
    """Check that a response is valid, or an error in OpenAI's format."""
    assert answer.status_code == 200 or answer.status_code in REFUSED, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("examples", [40, *by_night(400)])
def test_no_request_body_causes_an_internal_error(
    door: Door, path: str, examples: int, caplog: pytest.LogCaptureFixture
) -> None:
    schema = door.app.openapi()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]

    seen: set[int] = set()

    @given(values(body, schema["components"]["schemas"]))
    @settings(max_examples=examples)
    def send(record: Any) -> None:
        answer = door.ask("post", path, content=json.dumps(record).encode(), headers=AS_JSON)
        check(answer)
        seen.add(answer.status_code)

    send()
    assert 400 in seen
    assert 200 in seen or path == "/v1/chat/completions", "the bundled family does not converse"
    ours = [record for record in caplog.records if record.name == "stretto_gateway"]
    assert not [record for record in ours if record.levelno >= logging.ERROR]


CONTENTS = st.binary(max_size=300) | st.sampled_from([b"[" * 1_000_000, b'{"a":' * 200_000, b"1" * 100_000])
MEDIA_TYPES = ["application/json", "multipart/form-data; boundary=x", "text/plain", "application/x-y", ""]


@pytest.mark.parametrize("examples", [100, *by_night(300)])
def test_arbitrary_bytes_cause_no_internal_error(door: Door, examples: int) -> None:
    @given(CONTENTS, st.sampled_from(MEDIA_TYPES), st.sampled_from([*PATHS, "/v1/audio/transcriptions"]))
    @settings(max_examples=examples)
    def send(content: bytes, media_type: str, path: str) -> None:
        check(door.ask("post", path, content=content, headers={"content-type": media_type}))

    send()


UNKNOWN = {f"unknown{n}": 0 for n in range(100)}


@pytest.mark.parametrize(
    ("model", "record"),
    [
        (SpeechRequest, {"input": "a", "model": 1, "voice": 1, **UNKNOWN}),
        (BatchRequest, {"items": [{}] * 100}),
        (BatchRequest, {"items": [UNKNOWN] * 100}),
        (ChatRequest, {"messages": [{}] * 60}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 60}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "modalities": [0] * 100}),
    ],
)
def test_validation_errors_are_limited_in_number(model: type[Body], record: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(record)
    assert raised.value.error_count() <= 5, "one for each field that is known"
