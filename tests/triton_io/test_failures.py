"""Which error becomes which answer, and which is worth a line in the log."""

import pytest
from stretto.errors import Cancelled, InvalidRequest, Overloaded
from stretto.triton_io.failures import failed_response, log_failure

from tests.fakes_triton import Logger, TritonError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            InvalidRequest("text", "1 to 200 characters", 0),
            TritonError.INVALID_ARG,
            "invalid request: text: expected 1 to 200 characters",
        ),
        (Overloaded("server is draining"), TritonError.UNAVAILABLE, "unavailable: server is draining"),
        (Cancelled("the client cancelled"), TritonError.CANCELLED, "cancelled: the client cancelled"),
    ],
)
def test_expected_errors_are_answered_and_not_logged(error: Exception, code: int, message: str) -> None:
    log_failure(error, "utterance 7")
    answer = failed_response(error, "utterance 7").error
    assert answer.code() == code
    assert answer.message().startswith(message)
    assert Logger.errors == []


def test_a_bug_is_logged_once_with_its_traceback_and_answered_briefly() -> None:
    try:
        raise RuntimeError("x" * 1000)
    except RuntimeError as error:
        log_failure(error, "utterance 7")
        answer = failed_response(error, "utterance 7").error
    assert answer.code() == TritonError.INTERNAL
    assert answer.message().startswith("failed: utterance 7: RuntimeError: xxx")
    assert len(answer.message()) <= 300
    (line,) = Logger.errors
    assert line.startswith("utterance 7: Traceback")
