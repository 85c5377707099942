"""Errors, their responses, and which of them are logged."""

import re

import pytest

from stretto.errors import Cancelled, Closing, InvalidRequest, Overloaded, incident
from stretto.triton_io.callers import client_message, failed_response, log_failure
from tests.fakes_triton import Logger, TritonError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            InvalidRequest("text", "1 to 200 characters", 0),
            TritonError.INVALID_ARG,
            "invalid request: text: expected 1 to 200 characters",
        ),
        (Overloaded("80 wait already"), TritonError.UNAVAILABLE, "full: 80 wait already"),
        (Closing("server is draining"), TritonError.UNAVAILABLE, "unavailable: server is draining"),
        (Cancelled("the client cancelled"), TritonError.CANCELLED, "cancelled: the client cancelled"),
    ],
)
def test_expected_errors_are_answered_and_not_logged(error: Exception, code: int, message: str) -> None:
    log_failure(error, "utterance 7")
    answer = failed_response(error, "utterance 7").error
    assert answer.code() == code
    assert answer.message().startswith(message)
    assert Logger.errors == []


def test_internal_error_logs_traceback_once_and_returns_incident_id() -> None:
    try:
        raise RuntimeError("x" * 1000)
    except RuntimeError as error:
        log_failure(error, "utterance 7")
        answer = failed_response(error, "utterance 7").error
    assert answer.code() == TritonError.INTERNAL
    assert re.fullmatch("failed: utterance 7: internal error [0-9a-f]{8}", answer.message())
    (line,) = Logger.errors
    assert line.startswith("utterance 7: Traceback")
    assert line.rstrip().endswith(answer.message().partition("utterance 7: ")[2])


def test_incident_id_is_stable_per_error() -> None:
    error = RuntimeError("boom")
    assert incident(error) == incident(error) == client_message(error, "utterance 7").removeprefix("utterance 7: ")
    assert incident(RuntimeError("boom")) != incident(error)
