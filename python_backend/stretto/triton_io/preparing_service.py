"""Triton service of the preprocessor.

It answers requests with audio once the audio has been decoded, and all other requests immediately.

WORKAROUND(triton python_backend r24.10): if a stub sends no message for a second, the server declares it dead and
frees the request's memory (stub_launcher.cc). The stub or the server then crashes. This can happen on a busy machine,
so nothing slow may happen before `execute` returns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.disconnects import Disconnects
from stretto.errors import Cancelled
from stretto.family.encoding_turns import cancelled_by
from stretto.hops import Hop, stamp
from stretto.records.prompt import AudioPart, Prompt, Resumption, TextPart, read_session
from stretto.triton_io.callers import Caller, failed_response, log_failure
from stretto.triton_io.flow import HeldSlots
from stretto.triton_io.ring import check_ring
from stretto.triton_io.seal import Seal
from stretto.triton_io.stub import DrainGate
from stretto.triton_io.tensors import session_slot, unknown_session, write_part, write_prompt

NAME = "preprocessor"


class Raw(Protocol):
    """Inputs of a request, before they are parsed (`preprocessing.request.RawRequest`)."""

    pcm_in: np.ndarray | None
    sample_rate: int | None
    session: str | bytes | None
    image: Any

    def num_audio_bytes(self) -> int: ...

    def kept(self) -> "Raw": ...


class Lanes(Protocol):
    """Interface of the queues that decode audio in other processes (`preprocessing.audio.AudioLanes`)."""

    def submit(
        self,
        num_bytes: int,
        run: Callable[[Any], None],
        refuse: Callable[[Exception], None],
        host: str,
        is_cancelled: Callable[[], bool],
        has_images: bool,
    ) -> None: ...


class Hearing(Protocol):
    """Interface of the process that encodes live audio (`preprocessing.hearing.Hearing`)."""

    def submit(
        self,
        session: str,
        number: int,
        pcm: np.ndarray,
        rate: int | None,
        is_last: bool,
        host: str,
        answer: Callable[[AudioPart], None],
        is_open: Callable[[], bool],
    ) -> None: ...


class PreparingService:
    """Service that answers every request exactly once, with its prompt or an error.

    Parts of streamed text and live audio are accepted even while the server drains, so that their utterances can be
    completed.

    Args:
        prepare: Returns the prompt for a request's inputs. Its second argument, an audio reader, is passed only if the
            inputs contain audio.
        hearing: Live-audio encoder; None if the family does not accept live audio.
        slots: Utterances in progress; None without `hearing`.
    """

    def __init__(
        self,
        prepare: Callable[..., Prompt],
        read_part: Callable[..., TextPart],
        lanes: Lanes,
        seal: Seal,
        gate: DrainGate,
        hearing: Hearing | None = None,
        slots: HeldSlots | None = None,
    ) -> None:
        self._hearing = hearing
        self._slots = slots
        self._prepare = prepare
        self._read_part = read_part
        self._lanes = lanes
        self._seal = seal
        self._gate = gate
        self._disconnects = Disconnects.from_environment()

    def answer(self, request: Any, read: Callable[[Any], Any]) -> Any | None:
        """Return the response to a request, or None if it will be sent later."""
        stamp(Hop.PREPROCESSOR_BEGINS)
        try:
            raw = read(request)
            if raw.session is not None and self._hearing is not None:
                return self._hear(self._hearing, raw, request)
            if raw.session is not None:
                return pb_utils.InferenceResponse(write_part(self._read_part(raw), self._seal))
            num_bytes = raw.num_audio_bytes()
            self._gate.enter()
        except Exception as error:
            return failure(error)
        if not num_bytes:
            return self._respond(lambda: self._prepare(raw))
        try:
            self._hand_over(raw.kept(), num_bytes, Caller(request, self._disconnects))
        except Exception as error:
            self._gate.release()
            return failure(error)
        return None

    def _hear(self, hearing: Hearing, raw: Raw, request: Any) -> Any | None:
        """Queue a part of live audio, or return the response to a request that resumes a session."""
        assert self._slots is not None, "live audio needs the sessions in progress"
        session = read_session(raw, ("text", "audio", "messages", "task", "options"), can_resume=True)
        is_open = partial(self._slots.has, *session_slot(session["id"], self._seal))
        if not is_open():
            raise unknown_session(session["id"], "resume" in session)
        if "resume" in session:
            resumption = Resumption(session["id"], session["resume"], session["is_last"])
            return pb_utils.InferenceResponse(write_part(resumption, self._seal))
        caller = Caller(request, self._disconnects)
        pcm = np.zeros(0, np.float32) if raw.pcm_in is None else raw.pcm_in.copy()

        def answer(audio_part: AudioPart) -> None:
            send(caller.sender, pb_utils.InferenceResponse(write_part(audio_part, self._seal)))

        number = session["part"]
        is_last = session["is_last"]
        hearing.submit(session["id"], number, pcm, raw.sample_rate, is_last, caller.host, answer, is_open)
        return None

    def _hand_over(self, raw: Raw, num_bytes: int, caller: Caller) -> None:
        def prepare(reader: Any) -> Prompt:
            if caller.has_disconnected():
                raise Cancelled("the client has disconnected")
            with cancelled_by(caller.has_disconnected):
                return self._prepare(raw, reader)

        def refuse(error: Exception) -> None:
            self._gate.release()
            send(caller.sender, failure(error))

        def run(reader: Any) -> None:
            send(caller.sender, self._respond(lambda: prepare(reader)))

        has_images = raw.image is not None
        self._lanes.submit(num_bytes, run, refuse, caller.host, caller.has_disconnected, has_images)

    def _respond(self, prepare: Callable[[], Prompt]) -> Any:
        try:
            prompt = prepare()
            check_ring(prompt.delivery.form.ring)
            return pb_utils.InferenceResponse(write_prompt(prompt, self._seal))
        except Exception as error:
            return failure(error)
        finally:
            stamp(Hop.PREPROCESSOR_ANSWERS)
            self._gate.release()


def failure(error: Exception) -> Any:
    """Return the error response for `error`; log the error if it is internal."""
    log_failure(error, NAME)
    return failed_response(error, NAME)


def send(sender: Any, response: Any) -> None:
    """Send the only response to a request, with the final flag."""
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
