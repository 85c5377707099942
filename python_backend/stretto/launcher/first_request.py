"""First requests of a server. One of them must pass through all models before the server is reported as ready.

A server whose models are loaded may still fail: a kernel does not compile, the first step exhausts the memory, or a
process hangs. The request also triggers all preparations that happen at first use, so that clients do not wait for
them.
"""

import http.client
import io
import json
import math
import re
import select
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stretto.errors import FULL, INVALID, UNAVAILABLE, shown
from stretto.launcher.installation import LaunchError
from stretto.proxy.apis import ENSEMBLE

PROFILE = re.compile(r"key: \"profile\" value \{ string_value: '([^']*)'")
GENERATE = f"/v2/models/{ENSEMBLE}/generate_stream"  # answers with server-sent events
TEXT = "Hello."
MAX_AUDIO_S = 2.0  # "Hello." is shorter, but a model that does not end its reply by itself must not delay the start
MAX_TEXT_ROWS = 16
# Of a reply that speaks: text before the audio, or text and audio in the same rows. "Hello." is shorter, too.
MAX_SPOKEN_ROWS = 128
RATE = 16_000
RECORDING_S = 2.0
PITCH_HZ = 140.0
RECEIVE_BYTES = 1 << 20
# Fields of a task that a repository of an earlier version may lack.
DEFAULTS: dict[str, Any] = {"needs": [], "also": [], "system": [], "speaks": False}
DEFAULTS |= {"max_speech_s": 0.0, "max_text_rows": MAX_SPOKEN_ROWS}
Connect = Callable[[], http.client.HTTPConnection]


def first_requests(repository: Path) -> list[dict[str, Any]]:
    """Return short requests for the first task of a model, in the order in which to try them.

    A request has values of the ensemble's inputs, by name. A repository without a model profile, such as one of the
    user's own models, has no requests.
    """
    profile = model_profile(repository)
    if not profile.get("tasks"):
        return []
    task = DEFAULTS | profile["tasks"][0]
    options = _options(profile, task)
    shared = {"task": task["name"], "options": json.dumps(options)}
    recording = {"pcm_in": _recording(), "sample_rate": RATE}
    if "text" not in (*task["needs"], *task["also"]):
        return [shared | recording]
    requests = [shared | {"text": TEXT}]
    if "audio" in task["system"] and "voice" not in options:  # some models speak only in the voice of a recording
        turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": TEXT}]
        requests.append(shared | recording | {"messages": json.dumps(turns)})
    return requests


def model_profile(repository: Path) -> dict[str, Any]:
    """Return the model profile of a repository; empty if it has none."""
    config = repository / ENSEMBLE / "config.pbtxt"
    match = PROFILE.search(config.read_text(errors="replace")) if config.exists() else None
    if match is None:
        return {}
    try:
        profile = json.loads(match[1])
    except (ValueError, RecursionError):
        profile = None
    if not isinstance(profile, dict):
        raise LaunchError(f"{config}: profile: expected a JSON object, got {shown(match[1])}")
    return profile


def _options(profile: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": 0}
    if task["speaks"] and profile.get("voices"):
        options["voice"] = profile["voices"][0]
    if profile.get("requires_language"):
        options["language"] = profile["languages"][0]
    if task["max_speech_s"]:
        options["max_audio_s"] = min(MAX_AUDIO_S, task["max_speech_s"])
    if num_rows := min(MAX_SPOKEN_ROWS if task["speaks"] else MAX_TEXT_ROWS, task["max_text_rows"]):
        options["text"] = {"max_rows": num_rows}
    return options


def _recording() -> list[float]:
    """Return samples with the pitch and the syllables of a voice, because models refuse silence as a voice."""
    times = [index / RATE for index in range(int(RATE * RECORDING_S))]
    tones = [sum(math.sin(math.tau * PITCH_HZ * n * t) / n for n in (1, 2, 3)) for t in times]
    return [round(0.1 * math.sin(math.pi * 4 * t) ** 2 * tone, 3) for t, tone in zip(times, tones, strict=True)]


class RequestFailed(Exception):
    """The server's reply is an error. The message begins with its kind, such as `invalid request`."""


class FirstRequest:
    """Sends the first requests of a server and receives their replies without blocking the caller.

    An invalid request is followed by the next one. A server that refuses a request because it is full works, because it
    serves other requests.
    """

    def __init__(self, requests: list[dict[str, Any]], connect: Connect) -> None:
        self._requests = deque(requests)
        self._connect = connect
        self._call: http.client.HTTPConnection | None = None
        self._received = b""
        self._started = time.monotonic()
        self._refusal = ""
        self._num_samples = 0

    def is_done(self) -> bool:
        """Advance as far as possible without waiting; return True once the server works or has refused all requests.

        If the server answers with an internal error or an incomplete reply, raise LaunchError.
        """
        try:
            return self._advance()
        except (
            OSError,
            http.client.HTTPException,
        ):  # the server is too busy, or ends: its watch finds that
            self.close()
            return False

    def _advance(self) -> bool:
        if self._call is None:
            self._send(self._requests[0])
        assert self._call is not None
        while select.select([self._call.sock], [], [], 0)[0]:
            received = self._call.sock.recv(RECEIVE_BYTES)
            self._received += received
            if not received:
                return self._is_answered()
        return False

    def _send(self, request: dict[str, Any]) -> None:
        self._call = self._connect()
        self._received = b""
        self._call.request("POST", GENERATE, json.dumps(request), {"Connection": "close"})

    def _is_answered(self) -> bool:
        """Return True if the complete response is a reply, or refuses the last request."""
        received = self._received
        self.close()
        try:
            self._num_samples = num_samples(received)
        except RequestFailed as error:
            message = str(error)
            if f"{INVALID}: " in message:
                self._requests.popleft()
                self._refusal = "" if self._requests else message
                return not self._requests
            is_full = f"{FULL}: " in message
            if is_full or f"{UNAVAILABLE}: " in message:
                return is_full
            raise LaunchError(f"the models are loaded, but the first request failed: {message}") from None
        return True

    def outcome(self) -> str:
        """Return a log line about the complete request."""
        if self._refusal:
            return f"ready without a reply, because the model has refused the first request: {self._refusal}"
        seconds = time.monotonic() - self._started
        return f"the first request took {seconds:.1f} s; samples in the reply: {self._num_samples}"

    def close(self) -> None:
        if self._call is not None:
            self._call.close()
            self._call = None


class _Received:
    """Received bytes in the form of a socket, for `http.client`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def num_samples(received: bytes) -> int:
    """Return the number of samples in a reply.

    Args:
        received: Complete HTTP response with server-sent events, one for each response of the ensemble.

    Raises:
        RequestFailed: The reply is an error, or incomplete.
        HTTPException: The response is incomplete.
    """
    response = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]
    response.begin()
    body = response.read().decode(errors="replace")
    events = [json.loads(line.partition(":")[2]) for line in body.splitlines() if line.startswith("data:")]
    failed = next((event["error"] for event in events if "error" in event), None)
    if failed is not None:
        raise RequestFailed(failed)
    if not any("report" in json.loads(event["event"]) for event in events if event.get("event")):
        raise RequestFailed(f"expected a reply with a report, got {shown(body)}")
    return sum(len(event.get(name) or []) for event in events for name in ("pcm", "pcm16"))
