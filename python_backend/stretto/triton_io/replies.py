"""Decoder's answer to one chunk or probe: sent to the client and counted in the utterance's flow slot.

WORKAROUND(triton server 2.51): an ensemble request of which one step fails while another is in progress is never
released, so no answer carries an error. The decoder stores its error in the slot, and the language model, which knows
when everything has been answered, sends it last.
"""

import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.errors import Cancelled, Closing, InvalidRequest, Overloaded
from stretto.records import event as event_record
from stretto.records.event import Event
from stretto.triton_io.callers import Caller
from stretto.triton_io.failures import told
from stretto.triton_io.flow import FlowSlot, Outcome
from stretto.triton_io.ring_writer import RingWriter
from stretto.triton_io.schema import EVENT, PCM, PCM16
from stretto.triton_io.tensors import array_tensor, text_tensor

NAME = "acoustic decoder"
CLIENTS = "options."  # prefix of fields that the client wrote; all others are the language model's


class ChunkReply:
    """Answer to one chunk, given exactly once with the final flag: by `send`, `fail` or `close`."""

    def __init__(self, caller: Caller, slot: FlowSlot) -> None:
        self._caller = caller
        self.slot = slot
        self.writer: RingWriter | None = None
        self._address: int | None = None
        # Locked because Triton frees an answered request's state, and two threads query it: worker and rings.
        self._is_answered, self._asking = False, threading.Lock()
        self._came_s = time.monotonic()

    def lies_at(self, address: int) -> None:
        """Record the GPU address of the samples that `send` will get, valid until `send` returns."""
        self._address = address

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send samples [n], float32 or int16, or None, and their event, through the client's ring if it has one."""
        if self.writer is not None:
            self.writer.offer(self, pcm, event, self._address)
        else:
            self.deliver(pcm, event)
        if pcm is not None:
            self.slot.note_latency(time.monotonic() - self._came_s)

    def deliver(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send samples, or None, and their event in the response."""
        assert not self._is_answered, f"answered twice: {event}"
        tensors = [] if pcm is None else [array_tensor(PCM16 if pcm.dtype == np.int16 else PCM, pcm)]
        self._answer(pb_utils.InferenceResponse([*tensors, text_tensor(EVENT, event_record.EVENT.write(event))]))

    def fail(self, error: BaseException) -> None:
        """End the utterance with an error, which the decoder has logged."""
        self.slot.conclude(outcome_of(error), told(error, NAME))
        if not self._is_answered:
            self._answer()

    def close(self) -> None:
        """Answer a probe: send nothing, and record whether the client has disconnected."""
        self.is_cancelled()
        self._answer()

    def is_cancelled(self) -> bool:
        """Return True if the client has disconnected or the utterance is over."""
        with self._asking:
            if not self._is_answered and self._caller.has_left():
                self.slot.conclude(Outcome.CANCELLED)
        return self.slot.outcome is not Outcome.OPEN

    def _answer(self, *response: Any) -> None:
        # The stub's `send` returns once the server has accepted the response, so counted answers are complete.
        with self._asking:
            self._caller.sender.send(*response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self._is_answered = True
        self.slot.count_answer()


def acknowledge(request: Any, utterance: str, part: int) -> None:
    """Acknowledge a part of streamed text to its sender."""
    event = event_record.PART_EVENT.write({"utterance": utterance, "part": part})
    response = pb_utils.InferenceResponse([text_tensor(EVENT, event)])
    request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of an utterance that ends with `error`."""
    match error:
        case Cancelled():
            return Outcome.CANCELLED
        case Overloaded():
            return Outcome.OVERLOADED
        case Closing():
            return Outcome.CLOSING
        case InvalidRequest(field=field) if field.startswith(CLIENTS):
            return Outcome.REFUSED
    return Outcome.FAILED
