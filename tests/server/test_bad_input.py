"""Each bad request gets an error with field, limit and value, and the server is unaffected."""

import json
from typing import Any

import numpy as np
import pytest

from tests.server.conftest import Server
from tests.tiers import by_night

pytestmark = pytest.mark.server

TONE = np.sin(np.arange(16000) / 20).astype(np.float32) / 2
RATE = np.array([16000], np.int32)


# One for each check that the server's models call, and those of Triton itself. The limits are tested where they are
# checked: preprocessing/test_request.py, records/test_option_limits.py.
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["text", "at least one of text, audio, pcm_in and messages", "none"]),
    "empty text": ({"text": ""}, ["text", "got"]),
    "a text that is not UTF-8": ({"text": b"\xff\xfe"}, ["text", "UTF-8", "0xff"]),
    "an unknown option": ({"text": "hello", "options": '{"sed": 1}'}, ["options.sed", "seed", "unknown"]),
    "JSON too deep": ({"text": "hello", "options": "[" * 500 + "]" * 500}, ["options", "8 deep", "9 levels"]),
    "corrupt audio": (
        {"audio": b"RIFF" + bytes(200)},
        ["audio", "wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac"],
    ),
    "60 MB of audio": ({"audio": b"RIFF" + bytes(60_000_000)}, ["audio", "20000000 bytes", "60000004 bytes"]),
    "NaN samples": ({"pcm_in": np.full(16000, np.nan, np.float32), "sample_rate": RATE}, ["pcm_in", "finite"]),
    "no samples": ({"pcm_in": TONE[:0], "sample_rate": RATE}, ["pcm_in"]),
    "a minute of samples": ({"pcm_in": np.tile(TONE, 60), "sample_rate": RATE}, ["pcm_in", "18 s", "60.0 s"]),
    "samples of another type": ({"pcm_in": TONE.astype(np.int32), "sample_rate": RATE}, ["pcm_in", "FP32", "INT32"]),
    "two texts": ({"text": np.array([b"a", b"b"], object)}, ["text", "[1]", "[2]"]),
    "a matrix of samples": ({"pcm_in": TONE.reshape(2, -1), "sample_rate": RATE}, ["pcm_in", "[-1]", "[2,8000]"]),
    "messages that are no list": ({"messages": json.dumps({"role": "user"})}, ["messages"]),
}
# One of each layer: Triton, the tensors, the text, the options, and a file.
BY_DAY = ("two texts", "samples of another type", "empty text", "an unknown option", "corrupt audio")


@pytest.mark.parametrize("name", [*BY_DAY, *by_night(*sorted(BAD.keys() - {*BY_DAY}))])
def test_bad_input_error_names_field_limit_and_value(server: Server, name: str) -> None:
    inputs, words = BAD[name]
    answer = server.ask(**inputs)
    assert answer.error is not None
    assert answer.responses == []
    missing = [word for word in words if word not in answer.error]
    assert not missing, f"{missing} not in {answer.error!r}"
    assert "Traceback" not in answer.error


def test_bad_requests_do_not_affect_a_running_stream(server: Server) -> None:
    options = {"seed": 3, "max_audio_s": 2.0}
    alone = server.ask(options, text="two green windows")
    running = server.stream(options, text="two green windows")
    running.next()
    for name in ("empty text", "corrupt audio", "NaN samples"):
        assert server.ask(**BAD[name][0]).error is not None
    answer = running.listen()
    assert answer.error is None
    np.testing.assert_allclose(answer.pcm, alone.pcm, atol=1e-4)


def test_error_messages_start_with_the_error_kind(server: Server) -> None:
    assert server.ask(text="").error.startswith("in ensemble 'speech', invalid request: text: ")


def test_bad_input_leaves_no_traceback_in_the_log(server: Server) -> None:
    before, failed = server.log, server.metric("failed_total")
    for name in BY_DAY:
        server.ask(**BAD[name][0])
    assert "Traceback" not in server.log.removeprefix(before)
    assert server.metric("failed_total") == failed
