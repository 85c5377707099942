"""The decoder's side of the rim: every chunk to the worker with a reply of its own, every probe answered at once."""

import threading
import time
from typing import Any, Protocol

import numpy as np

from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm
from stretto.records.envelope import Envelope
from stretto.triton_io.failures import refuse
from stretto.triton_io.flow import FlowTables, Outcome
from stretto.triton_io.metrics import Gauges
from stretto.triton_io.replies import ChunkReply, answer_probe
from stretto.triton_io.ring_writer import RingOutlets
from stretto.triton_io.schema import CHUNK, CODES
from stretto.triton_io.tensors import read_array, read_record

# Metric, by the field of the worker's statistics that it shows.
METRICS = {
    "batches": ("decoder_batches_total", "Batches decoded"),
    "windows": ("decoder_windows_total", "Windows decoded; per batch, how well the utterances share the codec"),
    "frames": ("decoder_frames_total", "Frames decoded"),
    "decode_s": ("decoder_seconds_total", "Seconds spent decoding"),
    "session_bytes": ("decoder_session_bytes", "Memory of the frames and states of the open utterances"),
    "waiting_chunks": ("decoder_waiting_chunks", "Chunks that wait to be decoded"),
}
STATS_PERIOD_S = 0.5


class Worker(Protocol):
    """What this side needs of the decoder."""

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray | None, reply: ChunkReply, form: OutputForm) -> None:
        """Decode a chunk, in order within its utterance, and answer it."""
        ...

    def abandon(self, utterance: str) -> None:
        """Forget an utterance that nobody waits for."""
        ...

    @property
    def pace_s(self) -> float:
        """How often an utterance may send a chunk."""
        ...

    def stats(self) -> dict[str, float]:
        """Figures by name."""
        ...


class DecodingService:
    """Hands requests to the worker. Arrival order is the order of each utterance: there is one instance."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tables = FlowTables()
        self._outlets = RingOutlets()
        self._gauges = Gauges("acoustic_decoder", dict(METRICS.values()))
        threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def accept(self, request: Any) -> None:
        """Take a request over and return at once."""
        try:
            envelope = Envelope.from_record(read_record(request, CHUNK))
            slot = self._tables.at(envelope.flow)
            codes = read_array(request, CODES)
        except Exception as error:
            refuse(request.get_response_sender(), error, "acoustic decoder")
            return
        if envelope.chunk is None:
            answer_probe(request, slot)
            if slot.outcome is not Outcome.OPEN:
                self._worker.abandon(envelope.utterance)
            return
        slot.set_pace(self._worker.pace_s)
        ring = envelope.form.ring
        try:
            outlet = None if ring is None else self._outlets.at(envelope.utterance, ring, slot)
        except InvalidRequest as error:  # it was there when the request came in
            ChunkReply(request, slot).fail(error)
            return
        reply = ChunkReply(request, slot, outlet)
        # The request's memory goes with the request; the worker may hold the codes for longer.
        held = None if codes is None else codes.copy()
        self._worker.push(envelope.utterance, envelope.chunk, held, reply, envelope.form)

    def _report(self) -> None:
        while True:
            stats = self._worker.stats()
            self._gauges.update({metric: stats[field] for field, (metric, _) in METRICS.items()})
            time.sleep(STATS_PERIOD_S)
