"""The decoder's side of the rim: every chunk to the worker with a reply of its own, every probe answered at once."""

from typing import Any, Protocol

import numpy as np

from python_backend.streams.chunk import Chunk
from python_backend.triton_io.envelope import Envelope
from python_backend.triton_io.failures import refuse
from python_backend.triton_io.flow import FlowTables, Outcome
from python_backend.triton_io.replies import ChunkReply, answer_probe
from python_backend.triton_io.schema import CHUNK, CODES
from python_backend.triton_io.tensors import read_array, read_record


class Worker(Protocol):
    """What this side needs of the decoder."""

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray | None, reply: ChunkReply) -> None:
        """Decode a chunk, in order within its utterance, and answer it."""
        ...

    def abandon(self, utterance: str) -> None:
        """Forget an utterance that nobody waits for."""
        ...


class DecodingService:
    """Hands requests to the worker. Arrival order is the order of each utterance: there is one instance."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tables = FlowTables()

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
        reply = ChunkReply(request, slot)
        # The request's memory goes with the request; the worker may hold the codes for longer.
        self._worker.push(envelope.utterance, envelope.chunk, None if codes is None else codes.copy(), reply)
