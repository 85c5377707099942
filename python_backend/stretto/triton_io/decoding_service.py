"""The decoder's side of the rim: every chunk to the worker with a reply of its own, every probe answered at once."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from stretto.departures import Departures
from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm
from stretto.records.envelope import Envelope
from stretto.triton_io import stub
from stretto.triton_io.callers import Caller
from stretto.triton_io.failures import log_failure, refuse
from stretto.triton_io.flow import Outcome
from stretto.triton_io.flow_tables import FlowTables
from stretto.triton_io.metrics import Gauges
from stretto.triton_io.replies import NAME, ChunkReply, acknowledge
from stretto.triton_io.ring_writer import RingWriters
from stretto.triton_io.schema import CHUNK, CODES
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import read_array, read_record

# Metric, by the field of the worker's statistics that it shows.
METRICS = {
    "batches": ("decoder_batches_total", "Batches decoded"),
    "windows": ("decoder_windows_total", "Windows decoded; per batch, how well the utterances share the codec"),
    "frames": ("decoder_frames_total", "Frames decoded"),
    "decode_s": ("decoder_seconds_total", "Seconds spent decoding"),
    "session_bytes": ("decoder_session_bytes", "Memory of the frames and states of open utterances and references"),
    "waiting_chunks": ("decoder_waiting_chunks", "Chunks that wait to be decoded"),
}
STATS_PERIOD_S = 0.5
PLAIN = OutputForm()  # the session, once opened, knows better


class Worker(Protocol):
    """What this side needs of the decoder."""

    def push(
        self,
        utterance: str,
        chunk: Chunk,
        codes: np.ndarray | None,
        reply: ChunkReply,
        form: OutputForm,
        on_device: Callable[[int], None] | None,
        on_progress: Callable[[], None],
    ) -> None:
        """Decode a chunk, in order within its utterance, and answer it.

        on_device: told before the answer where on a GPU its samples lie, too, if they do. on_progress: told that what
        it waits for goes on.
        """
        ...

    def keep(self, utterance: str) -> None:
        """Somebody still waits for an utterance, though nothing comes for it."""
        ...

    def abandon(self, utterance: str) -> None:
        """Forget an utterance that nobody waits for."""
        ...

    @property
    def pace_s(self) -> float:
        """How often an utterance may send a chunk."""
        ...

    @property
    def has_died(self) -> bool:
        """Whether it has ended by itself."""
        ...

    def stats(self) -> dict[str, float]:
        """Figures by name."""
        ...


class DecodingService:
    """Hands requests to the worker. Arrival order is the order of each utterance: there is one instance."""

    def __init__(self, worker: Worker, seal: Seal) -> None:
        self._worker = worker
        self._seal = seal
        self._departures = Departures.from_environment()
        self._tables = FlowTables()
        self._writers = RingWriters()
        self._gauges = Gauges("acoustic_decoder", dict(METRICS.values()))
        stub.start_thread("metrics", self._report)

    def accept(self, request: Any) -> None:
        """Take a request over and return at once; it is answered once, whatever it holds."""
        reply: ChunkReply | None = None
        try:
            envelope, codes = self._read(request)
            if envelope.receipt is not None:
                acknowledge(request, envelope.utterance, envelope.receipt)
                return
            reply = ChunkReply(Caller(request, self._departures), self._tables.at(envelope.flow))
            self._take(envelope, codes, reply)
        except Exception as error:
            if reply is None:  # not of the ensemble: what that sends can be read
                refuse(request.get_response_sender(), error, NAME)
            else:
                log_failure(error, NAME)
                reply.fail(error)

    def _read(self, request: Any) -> tuple[Envelope, np.ndarray | None]:
        """An envelope and its codes; InvalidRequest unless this server's language model has written them."""
        codes = read_array(request, CODES)
        # The request's memory goes with the request; the worker may hold the codes for longer.
        codes = None if codes is None else codes.copy()
        record = self._seal.open(CHUNK.name, read_record(request, CHUNK), codes)
        return Envelope.from_json(CHUNK.name, record), codes

    def _take(self, envelope: Envelope, codes: np.ndarray | None, reply: ChunkReply) -> None:
        slot, form = reply.slot, envelope.form or PLAIN
        if envelope.chunk is None or not slot.is_held:
            reply.close()
            if slot.outcome is not Outcome.OPEN or not slot.is_held:
                self._worker.abandon(envelope.utterance)
            else:
                self._worker.keep(envelope.utterance)
            return
        slot.set_pace(self._worker.pace_s)
        if form.ring is not None:
            self._writers.open(envelope.utterance, form.ring, slot)
        reply.writer = self._writers.of(envelope.utterance)
        on_device = reply.lies_at if reply.writer is not None and reply.writer.is_on_device else None
        self._worker.push(envelope.utterance, envelope.chunk, codes, reply, form, on_device, slot.note_progress)

    def _report(self) -> None:
        while not self._worker.has_died:
            stats = self._worker.stats()
            self._gauges.update({metric: stats[field] for field, (metric, _) in METRICS.items()})
            time.sleep(STATS_PERIOD_S)
        stub.end("the decoder's thread has ended")
