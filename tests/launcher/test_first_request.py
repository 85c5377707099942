"""First request of a server: its contents, and a launcher that is ready only after the reply."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.errors import INVALID, UNAVAILABLE
from stretto.launcher.first_request import FirstRequest, first_requests
from stretto.launcher.installation import LaunchError, bundled_repository
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.launcher.launched import Launch
from tests.patience import PATIENCE_S

REPLY = {"event": '{"report": {}}', "pcm": [0.5]}


def failure(message: str) -> dict[str, str]:
    return {"error": f"in ensemble 'speech', {message}"}


def write_replies(folder: Path, *replies: dict[str, Any]) -> None:
    (folder / "replies").write_text("\n".join(map(json.dumps, replies)))


def num_requests(folder: Path) -> int:
    return (folder / "requests").read_bytes().count(b"\n")


@pytest.mark.slow
def test_launcher_is_ready_only_after_a_reply(launch: Launch, tmp_path: Path) -> None:
    write_replies(tmp_path, *[failure(f"{UNAVAILABLE}: the models are starting")] * 3, REPLY)
    server = launch()
    server.until_ready()
    assert num_requests(tmp_path) == 4
    assert "; samples in the reply: 1\n" in server.said
    server.kill_stub()
    server.until_ready(2)
    assert num_requests(tmp_path) == 5, "a restarted server also has to reply"


@pytest.mark.slow
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(failure("internal error 4d2"), id="error"),
        pytest.param({"event": '{"index": 0}', "pcm": [0.5]}, id="no report", marks=pytest.mark.nightly),
    ],
)
def test_launcher_ends_if_the_models_cannot_reply(launch: Launch, tmp_path: Path, reply: dict[str, Any]) -> None:
    write_replies(tmp_path, reply)
    server = launch()
    assert server.process.wait(PATIENCE_S) == 1
    assert "the models are loaded, but the first request failed: " in server.said
    assert reply.get("error", "expected a reply with a report") in server.said


@pytest.mark.slow
def test_start_is_retried_if_a_stub_ends_at_the_first_request(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "unable").touch()
    server = launch()
    server.until_ready()
    assert "start 1 of 10 aborted: triton_python_b (pid " in server.said
    assert ") ended at the first request" in server.said


def repository(folder: Path, **profile: Any) -> Path:
    (folder / "speech").mkdir()
    text = json.dumps(profile)
    (folder / "speech/config.pbtxt").write_text(f"parameters {{ key: \"profile\" value {{ string_value: '{text}' }} }}")
    return folder


TTS = {"name": "tts", "needs": ["text"], "speaks": True, "max_speech_s": 1.5}
SPOKEN = {"text": {"max_rows": 128}}  # a limit on rows of text, or of text and audio


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({"tasks": [TTS], "voices": ["ada"]}, [("text", SPOKEN | {"max_audio_s": 1.5, "voice": "ada"})]),
        ({"tasks": [TTS | {"max_text_rows": 0}]}, [("text", {"max_audio_s": 1.5})]),
        (
            {"tasks": [TTS | {"system": ["audio"]}], "requires_language": True, "languages": ["dutch", "nl"]},
            [
                ("text", SPOKEN | {"max_audio_s": 1.5, "language": "dutch"}),
                ("messages", SPOKEN | {"max_audio_s": 1.5, "language": "dutch"}),
            ],
        ),
        ({"tasks": [{"name": "asr", "needs": ["audio"]}]}, [("pcm_in", {"text": {"max_rows": 16}})]),
        ({"tasks": [{"name": "duplex", "needs": ["audio"], "speaks": True}]}, [("pcm_in", SPOKEN)]),
        ({"tasks": [TTS | {"max_speech_s": 0.0, "max_text_rows": 8192}]}, [("text", SPOKEN)]),
        ({"tasks": [{"name": "chat", "also": ["text"]}]}, [("text", {"text": {"max_rows": 16}})]),
        ({}, []),
    ],
    ids=["voice", "no text", "recorded voice", "transcription", "full duplex", "interleaved", "text", "no tasks"],
)
def test_first_request_is_one_that_the_model_accepts(
    tmp_path: Path, profile: dict[str, Any], expected: list[tuple[str, dict[str, Any]]]
) -> None:
    requests = first_requests(repository(tmp_path, **profile))
    inputs = ("messages", "pcm_in", "text")
    found = [(next(name for name in inputs if name in each), json.loads(each["options"])) for each in requests]
    assert found == [(name, {"seed": 0} | options) for name, options in expected]
    for each in requests:
        if "pcm_in" in each:
            assert 0.1 < np.abs(each["pcm_in"]).max() <= 1.0


def test_repository_without_a_profile_has_no_first_request(tmp_path: Path) -> None:
    assert first_requests(tmp_path) == []
    (repository(tmp_path) / "speech/config.pbtxt").write_text('key: "profile" value { string_value: \'["tts"]\' }')
    with pytest.raises(LaunchError, match="profile: expected a JSON object"):
        first_requests(tmp_path)


class Answers:
    """Connections to a server that gives one answer after another, and the requests that it has received."""

    def __init__(self, *answers: bytes) -> None:
        self.answers, self.requests = [*answers], list[dict[str, Any]]()

    def __call__(self) -> http.client.HTTPConnection:
        ours, theirs = socket.socketpair()
        connection = http.client.HTTPConnection("server")
        connection.sock = ours

        def request(method: str, path: str, body: str, headers: dict[str, str]) -> None:
            self.requests.append(json.loads(body))
            theirs.sendall(self.answers.pop(0))
            theirs.close()

        connection.request = request  # type: ignore[method-assign, assignment]
        return connection


def http_answer(*events: dict[str, Any], length: int | None = None) -> bytes:
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in events).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


WHOLE = http_answer(REPLY)


@pytest.mark.parametrize(
    ("answers", "num_sent", "said"),
    [
        ([http_answer(failure(f"{INVALID}: text: too short")), WHOLE], [1, 2], "samples in the reply: 1"),
        ([http_answer(failure(f"{INVALID}: text"))] * 2, [1, 2], "ready without a reply"),
        ([http_answer(failure("full: 8 sequences are already in flight"))], [1], "samples in the reply: 0"),
        ([http_answer(REPLY, length=1000), WHOLE], [1, 1], "samples in the reply: 1"),
    ],
    ids=["other request", "refused", "full", "incomplete"],
)
def test_first_request_continues_until_the_server_works(answers: list[bytes], num_sent: list[int], said: str) -> None:
    server = Answers(*answers)
    first = FirstRequest([{"number": 1}, {"number": 2}], server)
    for _ in range(10 * len(answers)):
        if first.is_done():
            break
    assert said in first.outcome()
    assert [each["number"] for each in server.requests] == num_sent


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\nno model", http_answer({"error": "in engine"})])
def test_first_request_fails_with_the_answer(answer: bytes) -> None:
    first = FirstRequest([{"number": 1}], Answers(answer))
    with pytest.raises(LaunchError, match="the first request failed: "):
        [first.is_done() for _ in range(10)]


def test_bundled_model_accepts_its_first_request() -> None:
    (request,) = first_requests(bundled_repository())
    assert request.keys() == {"task", "options", "text"}
    checkpoint = bundled_repository() / "language_model/1/checkpoint"
    prompt = Preprocessor(checkpoint).prepare(RawRequest(**request))
    assert [each.word for each in prompt.sources] == ["Hello"]
