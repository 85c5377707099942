"""Decoder thread with its metrics, and functions that load its codec and aligner."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from stretto.aligning.process import AlignerProcess, AlignmentQueue
from stretto.codecs.base import Codec, load_codec
from stretto.config import DecoderConfig
from stretto.decoder.alignment import Aligning
from stretto.decoder.chunk_queue import ChunkAnswer, ChunkQueue, Counts, PendingChunk, refuse
from stretto.decoder.launching import make_launcher
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.errors import Cancelled, CheckpointError, Closing
from stretto.marking.marker import open_marker
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import DecodingTime


def open_codec(config: DecoderConfig, checkpoint: Path) -> Codec:
    """Return the codec for `config`, with the weights (or the ONNX file) in `checkpoint`.

    Raises:
        CheckpointError: A file is missing, or does not fit the configuration.
        ValueError: The device or the right context is not supported.
    """
    codec: Codec
    if config.runtime == "onnx":
        from stretto.codecs.onnx_runtime import load as load_exported  # onnxruntime is loaded only where it is used

        codec = load_exported(config.codec, checkpoint, config.device, config.threads)
        there = codec.spec.num_codebooks
        wanted = config.num_codebooks or codec.spec.num_codebooks
        if there != wanted:
            raise CheckpointError(f"{checkpoint}: expected {config.codec} exported for {wanted} codebooks, got {there}")
    else:
        codec = load_codec(config.codec, checkpoint, config.device, config.num_codebooks)
    if config.right_frames is not None:
        codec.spec = codec.spec.with_right_frames(config.right_frames)
    return codec


def open_aligner(config: DecoderConfig, folder: Path) -> AlignmentQueue:
    """Start the process that computes word times with the CTC model in `folder`."""
    return AlignmentQueue(AlignerProcess(folder, config.aligner_device), config.align_s)


logger = logging.getLogger(__name__)
PLAIN = OutputForm()
STOPPING = "the decoder is stopping"
MAX_FAILED_TURNS = 3  # consecutive failures; a single chunk causes fewer


class DecoderWorker:
    """Decoder on a separate thread. Every chunk gets exactly one answer, in order within its utterance.

    Args:
        clock: Monotonic clock in seconds.
        aligner: Queue of alignment jobs for word times, closed by `stop`.
    """

    def __init__(
        self,
        codec: Codec,
        config: DecoderConfig,
        clock: Callable[[], float] = time.monotonic,
        aligner: Aligning | None = None,
    ) -> None:
        config = config.limited(codec.spec.max_batch)
        self._config = config
        self._aligner = aligner
        self._queue = ChunkQueue()
        self._counts = Counts()
        limits = (config.max_utterances, config.idle_timeout_s)
        sizes = (config.reference_mb << 20, config.align_mb << 20)
        self._sessions = Sessions(codec, *limits, clock, *sizes, open_marker(config.marker))
        launcher = make_launcher(codec, config)
        self._loop = DecodingLoop(codec, config, self._queue, self._counts, self._sessions, launcher, aligner)
        self._warm = Future[None]()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._is_stopping = False
        self._thread.start()

    def wait_until_warm(self) -> None:
        """Block until the warm-up has finished; raise its error if it failed."""
        self._warm.result()

    def push(
        self,
        utterance: str,
        chunk: Chunk,
        codes: np.ndarray | None,
        reply: ChunkAnswer,
        form: OutputForm = PLAIN,
        on_device: Callable[[int], None] | None = None,
        on_progress: Callable[[], None] | None = None,
        is_kept: Callable[[], bool] | None = None,
    ) -> None:
        """Queue a chunk for decoding and return immediately; the arguments are as in `PendingChunk`.

        Any thread may call this method.
        """
        pending = PendingChunk(utterance, chunk, codes, reply, form, on_device, on_progress, is_kept)
        if not self._queue.put(pending):
            refuse(pending, Closing(STOPPING), self._counts)

    def keep_alive(self, utterance: str) -> None:
        """Restart the idle timeout of an utterance. Any thread may call this method."""
        self._sessions.keep_alive(utterance)

    def abandon(self, utterance: str) -> None:
        """Drop an utterance, for example because its client has disconnected; its queued chunks fail."""
        for pending in self._queue.abandon(utterance):
            refuse(pending, Cancelled("the utterance was abandoned"), self._counts)

    def stop(self) -> None:
        """Refuse new chunks, decode queued ones for up to `stop_timeout_s`, fail the rest, and end the thread."""
        self._is_stopping = True
        self._queue.close()
        self._thread.join(self._config.stop_timeout_s)
        self._loop.fails_pending = True
        self._refuse_waiting()
        self._thread.join()
        if self._aligner is not None:
            self._aligner.close()

    @property
    def time(self) -> DecodingTime:
        return self._loop.stopwatch.measured

    @property
    def has_graphs(self) -> bool:
        return self._loop.has_graphs

    @property
    def thread_id(self) -> int:
        """Kernel thread id of the decoder thread."""
        assert self._thread.native_id is not None, "a running thread has an id"
        return self._thread.native_id

    def has_work(self) -> bool:
        return len(self._queue) + len(self._loop.unanswered) > 0

    @property
    def has_died(self) -> bool:
        """True if the thread has ended without a call to `stop`."""
        return not self._thread.is_alive() and not self._is_stopping

    def stats(self) -> dict[str, float]:
        """Return metrics: counters, open utterances, their memory, and waiting chunks."""
        now = {
            "open_utterances": len(self._sessions),
            "session_bytes": self._sessions.num_bytes,
            "waiting_chunks": len(self._queue) + self._loop.num_jobs,
        }
        return self._counts.to_dict() | now

    def _run(self) -> None:
        torch.set_num_threads(self._config.threads)
        try:
            if self._begins():
                self._take_turns()
        finally:  # answer all chunks, however the thread ended
            self._queue.close()
            self._refuse_waiting()
            self._loop.fail_all(Closing(STOPPING))

    def _take_turns(self) -> None:
        """Run the loop until stopped. After an exception, only the utterances in progress fail."""
        num_failed = 0
        while not self._loop.is_finished:
            try:
                self._loop.turn()
                num_failed = 0
            except Exception as error:
                logger.exception("an iteration of the decoder failed")
                self._loop.fail_all(error)
                num_failed += 1
                if num_failed == MAX_FAILED_TURNS:
                    raise

    def _begins(self) -> bool:
        try:
            self._loop.enter()
        except Exception as error:
            logger.exception("the decoder cannot start")
            self._warm.set_exception(error)
            return False
        self._warm.set_result(None)
        return True

    def _refuse_waiting(self) -> None:
        for pending in self._queue.clear():
            refuse(pending, Closing(STOPPING), self._counts)
