"""The preprocessor's side of the rim: requests with text are answered at once, requests with audio when they are read.

The server takes a stub for dead that does not answer for a second and shows no sign of life meanwhile, as happens on a
busy machine; it then frees the memory of the request, with which the stub or the server dies (stub_launcher.cc of
python_backend r24.10). So nothing that takes long may happen before `execute` returns.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.departures import Departures
from stretto.errors import Cancelled
from stretto.records.prompt import Prompt
from stretto.records.text_part import TextPart
from stretto.triton_io.callers import Caller
from stretto.triton_io.draining import DrainGate
from stretto.triton_io.failures import failed_response, log_failure
from stretto.triton_io.prompt_tensors import write_part, write_prompt
from stretto.triton_io.ring import check_ring
from stretto.triton_io.seal import Seal

WHOSE = "preprocessor"


class Raw(Protocol):
    """What is asked of a request's inputs here."""

    pcm_in: np.ndarray | None
    session: str | bytes | None

    def num_audio_bytes(self) -> int:
        """How much audio they hold; raises InvalidRequest where that is too much."""
        ...

    def kept(self) -> "Raw":
        """These inputs in memory that outlives the request."""
        ...


class Lanes(Protocol):
    """Where requests with audio are worked on."""

    def submit(
        self, num_bytes: int, run: Callable[[Any], None], refuse: Callable[[Exception], None], host: str
    ) -> None:
        """Have `run` called with a reader of audio, or `refuse`; Overloaded where there is too much already, or too
        much of `host`."""
        ...


class PreparingService:
    """Answers every request once: with its prompt, or with what is wrong with it. Parts of a text go on while the
    server drains: they are of utterances that are to be completed."""

    def __init__(
        self,
        prepare: Callable[..., Prompt],
        read_part: Callable[..., TextPart],
        lanes: Lanes,
        seal: Seal,
        gate: DrainGate,
    ) -> None:
        self._prepare, self._read_part, self._lanes, self._seal, self._gate = prepare, read_part, lanes, seal, gate
        self._departures = Departures.from_environment()

    def answer(self, request: Any, read: Callable[[Any], Any]) -> Any | None:
        """The response to `request`, whose inputs `read` reads; None where it will be sent later."""
        try:
            raw = read(request)
            if raw.session is not None:
                return pb_utils.InferenceResponse(write_part(self._read_part(raw), self._seal))
            num_bytes = raw.num_audio_bytes()
            self._gate.enter()
        except Exception as error:
            return failure(error)
        if not num_bytes:
            return self._respond(lambda: self._prepare(raw))
        try:
            self._hand_over(raw.kept(), num_bytes, Caller(request, self._departures))
        except Exception as error:
            self._gate.leave()
            return failure(error)
        return None

    def _hand_over(self, raw: Raw, num_bytes: int, caller: Caller) -> None:
        def prepare(reader: Any) -> Prompt:
            if caller.has_left():
                raise Cancelled("the client has gone away")
            return self._prepare(raw, reader)

        def refuse(error: Exception) -> None:
            self._gate.leave()
            send(caller.sender, failure(error))

        def run(reader: Any) -> None:
            send(caller.sender, self._respond(lambda: prepare(reader)))

        self._lanes.submit(num_bytes, run, refuse, caller.host)

    def _respond(self, prepare: Callable[[], Prompt]) -> Any:
        try:
            prompt = prepare()
            check_ring(prompt.delivery.form.ring)
            return pb_utils.InferenceResponse(write_prompt(prompt, self._seal))
        except Exception as error:
            return failure(error)
        finally:
            self._gate.leave()


def failure(error: Exception) -> Any:
    """The response that says what is wrong; what is ours is logged."""
    log_failure(error, WHOSE)
    return failed_response(error, WHOSE)


def send(sender: Any, response: Any) -> None:
    """Send the one response that there is."""
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
