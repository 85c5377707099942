"""Triton service of the decoder: receives chunks and probes, and sends samples and events."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.disconnects import Disconnects
from stretto.errors import Cancelled, Closing, InvalidRequest, Overloaded
from stretto.hops import Hop, stamp
from stretto.records import chunk as chunk_record
from stretto.records.chunk import Chunk, Envelope, Event
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import DecodingTime
from stretto.triton_io import stub
from stretto.triton_io.callers import Caller, client_message, log_failure, refuse
from stretto.triton_io.flow import FlowSlot, FlowTables, Outcome
from stretto.triton_io.metrics import Gauges
from stretto.triton_io.ring import RingWriter, RingWriters
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import (
    CHUNK,
    CODES,
    PCM,
    PCM16,
    array_tensor,
    event_tensor,
    read_array,
    read_record,
)

NAME = "acoustic decoder"
CLIENTS = ("options.", "session.")  # prefixes of fields set by the client; the language model sets all others


class ChunkReply:
    """Answer to one chunk. Exactly one call to `send`, `fail` or `close` ends the request.

    Attributes:
        wanted_s: See `ChunkAnswer`.
    """

    def __init__(self, caller: Caller, slot: FlowSlot) -> None:
        self._caller = caller
        self.host = caller.host
        self.slot = slot
        self.writer: RingWriter | None = None
        self._address: int | None = None
        # Locked because Triton frees an answered request's state, and both the worker and the ring thread query it.
        self._is_answered = False
        self._asking = threading.Lock()
        self._came_s = time.monotonic()
        self.wanted_s = 0.0

    def set_address(self, address: int) -> None:
        """Set the GPU address of the samples passed to the next `send`; it must be valid until `send` returns."""
        self._address = address

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send samples [n], float32 or int16, and their event, through the client's ring if it has one."""
        if self.writer is not None:
            self.writer.offer(self, pcm, event, self._address)
        else:
            self.deliver(pcm, event)
        if pcm is not None:
            self.slot.note_latency(time.monotonic() - max(self._came_s, self.wanted_s))

    def deliver(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send samples [n] and their event as tensors of the response."""
        assert not self._is_answered, f"answered twice: {event}"
        tensors = [] if pcm is None else [array_tensor(PCM16 if pcm.dtype == np.int16 else PCM, pcm)]
        self._answer(pb_utils.InferenceResponse([*tensors, event_tensor(chunk_record.EVENT.write(event))]))

    def fail(self, error: BaseException) -> None:
        """End the utterance with an error that has already been logged."""
        self.slot.conclude(outcome_of(error), client_message(error, NAME))
        if not self._is_answered:
            self._answer()

    def close(self) -> None:
        """Answer a probe without a response, after checking whether the client has disconnected."""
        self.is_cancelled()
        self._answer()

    def is_cancelled(self) -> bool:
        """Return True if the client has disconnected or the utterance is over."""
        with self._asking:
            if not self._is_answered and self._caller.has_disconnected():
                self.slot.conclude(Outcome.CANCELLED)
        return self.slot.outcome is not Outcome.OPEN

    def _answer(self, *response: Any) -> None:
        # Counted after `send`, which returns once the server has accepted the response.
        stamp(Hop.DECODER_ANSWERS)
        with self._asking:
            self._caller.sender.send(*response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self._is_answered = True
        self.slot.count_answer()


def acknowledge(request: Any, envelope: Envelope) -> None:
    """Acknowledge a part of streamed text or live audio to the client that sent it."""
    assert envelope.receipt is not None, "it has no receipt"
    record: chunk_record.PartEvent = {"utterance": envelope.utterance, "part": envelope.receipt}
    if envelope.frames is not None:
        record |= {"frames": envelope.frames, "lag_frames": envelope.lag_frames}
    event = chunk_record.PART_EVENT.write(record)
    response = pb_utils.InferenceResponse([event_tensor(event)])
    request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def outcome_of(error: BaseException) -> Outcome:
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


# Metric names and descriptions, keyed by field of the worker's statistics.
METRICS = {
    "batches": ("decoder_batches_total", "Batches decoded"),
    "windows": (
        "decoder_windows_total",
        "Windows decoded; their number divided by that of batches is the mean batch size",
    ),
    "frames": ("decoder_frames_total", "Frames decoded"),
    "late": ("decoder_underruns_total", "Chunks sent after a player that began with the first one ran out of audio"),
    "decode_s": ("decoder_seconds_total", "Seconds spent decoding"),
    "session_bytes": ("decoder_session_bytes", "Bytes of the frames and states of open utterances and references"),
    "waiting_chunks": ("decoder_waiting_chunks", "Chunks waiting to be decoded"),
}
STATS_PERIOD_S = 0.5
PLAIN = OutputForm()  # later chunks do not change the format of an open session


class DecodingWorker(Protocol):
    """Interface of the decoder worker (`decoder.worker.DecoderWorker`)."""

    @property
    def has_graphs(self) -> bool: ...

    def push(
        self,
        utterance: str,
        chunk: Chunk,
        codes: np.ndarray | None,
        reply: ChunkReply,
        form: OutputForm,
        on_device: Callable[[int], None] | None,
        on_progress: Callable[[], None],
        is_kept: Callable[[], bool] | None,
    ) -> None: ...

    def keep_alive(self, utterance: str) -> None: ...

    def abandon(self, utterance: str) -> None: ...

    @property
    def time(self) -> DecodingTime: ...

    @property
    def has_died(self) -> bool: ...

    def stats(self) -> dict[str, float]: ...


class DecodingService:
    """Dispatcher of Triton requests to the worker.

    The model has a single instance, so requests arrive in the order of an utterance's chunks.
    """

    def __init__(self, worker: DecodingWorker, seal: Seal, device: str = "cpu") -> None:
        self._worker = worker
        self._seal = seal
        self._disconnects = Disconnects.from_environment()
        self._tables = FlowTables()
        self._writers = RingWriters(device)
        self._gauges = Gauges("acoustic_decoder", dict(METRICS.values()))
        stub.start_thread("metrics", self._report)

    def accept(self, request: Any) -> None:
        """Accept a request and return immediately; it is answered exactly once, possibly later."""
        stamp(Hop.DECODER_ACCEPTS)
        reply: ChunkReply | None = None
        try:
            envelope, codes = self._read(request)
            if envelope.receipt is not None:
                acknowledge(request, envelope)
                return
            reply = ChunkReply(Caller(request, self._disconnects), self._tables.slot_at(envelope.flow))
            self._take(envelope, codes, reply)
        except Exception as error:
            if reply is None:  # the request is not from the ensemble, whose envelopes are always valid
                refuse(request.get_response_sender(), error, NAME)
            else:
                log_failure(error, NAME)
                reply.fail(error)

    def _read(self, request: Any) -> tuple[Envelope, np.ndarray | None]:
        """Return the envelope and codes; raise InvalidRequest if this server's language model did not send them."""
        codes = read_array(request, CODES)
        # Copied, because the worker may hold the codes longer than the request's memory lives.
        codes = None if codes is None else codes.copy()
        record = self._seal.open(CHUNK.name, read_record(request, CHUNK), codes)
        return Envelope.from_bytes(CHUNK.name, record), codes

    def _take(self, envelope: Envelope, codes: np.ndarray | None, reply: ChunkReply) -> None:
        slot = reply.slot
        form = envelope.form or PLAIN
        if envelope.chunk is None or not slot.is_held:
            reply.close()
            if slot.outcome is not Outcome.OPEN or not slot.is_held:
                self._worker.abandon(envelope.utterance)
            else:
                self._worker.keep_alive(envelope.utterance)
            return
        slot.set_time(self._worker.time, self._worker.has_graphs)
        if form.ring is not None:
            self._writers.open(envelope.utterance, form.ring, slot, reply.host)
        reply.writer = self._writers.get(envelope.utterance)
        on_device = reply.set_address if reply.writer is not None and reply.writer.is_on_device else None
        utterance = envelope.utterance
        is_kept = None
        kept = envelope.chunk.kept
        if kept is not None:  # `abandon` gets only the connection's id, so a lost connection does not end the session
            session = self._tables.slot_at(kept.slot)
            utterance = kept.utterance
            is_kept = partial(session.table.holds, session.address)
        self._worker.push(utterance, envelope.chunk, codes, reply, form, on_device, slot.note_progress, is_kept)

    def _report(self) -> None:
        while not self._worker.has_died:
            stats = self._worker.stats()
            self._gauges.update({metric: stats[field] for field, (metric, _) in METRICS.items()})
            time.sleep(STATS_PERIOD_S)
        stub.end("the decoder's thread has ended")
