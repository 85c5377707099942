"""First request of a server: its contents, and a launcher that is ready only after the reply."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.launcher.first_request import REFUSED, UNAVAILABLE, first_requests
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
    write_replies(tmp_path, *[failure(f"{UNAVAILABLE}the models are starting")] * 3, REPLY)
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


@pytest.mark.slow
def test_server_of_a_model_that_refuses_the_request_is_ready(launch: Launch, tmp_path: Path) -> None:
    write_replies(tmp_path, failure(f"{REFUSED}options.seed: expected no value"))
    launch().until_ready()
    server_said = (tmp_path / "output").read_text()
    assert "ready without a reply, because the model has refused the first request: in ensemble" in server_said


def repository(folder: Path, **profile: Any) -> Path:
    (folder / "speech").mkdir()
    text = json.dumps(profile)
    (folder / "speech/config.pbtxt").write_text(f"parameters {{ key: \"profile\" value {{ string_value: '{text}' }} }}")
    return folder


TTS = {"name": "tts", "needs": ["text"], "speaks": True, "max_speech_s": 1.5}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({"tasks": [TTS], "voices": ["ada"]}, [("text", {"max_audio_s": 1.5, "voice": "ada"})]),
        (
            {"tasks": [TTS | {"system": ["audio"]}], "requires_language": True, "languages": ["dutch", "nl"]},
            [
                ("text", {"max_audio_s": 1.5, "language": "dutch"}),
                ("messages", {"max_audio_s": 1.5, "language": "dutch"}),
            ],
        ),
        ({"tasks": [{"name": "asr", "needs": ["audio"]}]}, [("pcm_in", {"text": {"max_rows": 16}})]),
        ({"tasks": [{"name": "duplex", "needs": ["audio"], "speaks": True}]}, [("pcm_in", {})]),
        ({"tasks": [{"name": "chat", "also": ["text"]}]}, [("text", {"text": {"max_rows": 16}})]),
        ({}, []),
    ],
    ids=["voice", "recorded voice", "transcription", "full duplex", "text", "no tasks"],
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


def test_bundled_model_accepts_its_first_request() -> None:
    (request,) = first_requests(bundled_repository())
    assert request.keys() == {"task", "options", "text"}
    checkpoint = bundled_repository() / "language_model/1/checkpoint"
    prompt = Preprocessor(checkpoint).prepare(RawRequest(**request))
    assert [each.word for each in prompt.sources] == ["Hello"]
