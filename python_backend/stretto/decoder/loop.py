"""Main loop of the decoder thread: chunks become jobs, jobs become batches, and batches become replies.

    queue ─► jobs: one window per utterance ─► batch: windows of equal shape ─► in flight ─► replies

Waiting chunks are decoded immediately, at most one per utterance and batch. The loop never waits for a larger batch.
"""

import logging
import math
import time
from functools import partial

import numpy as np

from stretto.codecs.base import Codec, ProgressSource
from stretto.config import DecoderConfig
from stretto.decoder.alignment import Aligning, send_aligned
from stretto.decoder.batching import (
    BatchesInFlight,
    ChunkJob,
    HostTurns,
    LaunchedBatch,
    next_group,
    still_connected,
)
from stretto.decoder.chunk_queue import ChunkQueue, Counts, PendingChunk, Stopwatch, Unanswered, check_connected
from stretto.decoder.events import make_event
from stretto.decoder.launching import Launcher, capture_shapes, warm_up
from stretto.decoder.sessions import RESUME, DecoderSession, Sessions
from stretto.decoder.windows import FrameWindow
from stretto.decoding.graphs import batch_limit, limits_of, padded_batch
from stretto.errors import Cancelled, Closing, InvalidRequest
from stretto.hops import Hop, stamp
from stretto.streams.chunking import ChunkPolicy

logger = logging.getLogger(__name__)
LOOK_S = 0.0005  # time between two checks of a batch on the device
PROGRESS_S = 1.0  # well below one minute without progress, after which the language model ends an utterance


class DecodingLoop:
    """Decoding loop over a queue. Other threads may use only `fails_pending`, `unanswered` and the metrics.

    Attributes:
        clock: Clock for decoding times on the host, in seconds.
        fails_pending: Set to True to fail everything that has not been decoded yet.
    """

    def __init__(
        self,
        codec: Codec,
        config: DecoderConfig,
        queue: ChunkQueue,
        counts: Counts,
        sessions: Sessions,
        launcher: Launcher,
        aligner: Aligning | None = None,
    ):
        self._codec = codec
        self._aligner = aligner
        self._config = config
        self._queue = queue
        self._counts = counts
        self._sessions = sessions
        self._launcher = launcher
        self.unanswered = Unanswered(counts, queue)  # chunks in progress
        self._jobs: list[ChunkJob] = []  # admitted, at most one per utterance
        self._turns = HostTurns()
        self._batches = BatchesInFlight(launcher.depth)
        if self._launcher.has_graphs and config.right_frames is None:  # a reduced right context does not hide padding
            sessions.last_sizes = ChunkPolicy(config.first_frames, config.steady_frames).sizes
        sessions.begin = launcher.initial_state
        self.stopwatch = Stopwatch(codec.spec.left_frames + codec.spec.right_frames, self._launcher.batch_s)
        self._launched_s = {False: 0.0, True: 0.0}  # time of each lane's last launch, on the sessions' clock
        self.clock = time.perf_counter
        self.fails_pending = False
        self._signalled_s = time.monotonic()
        if isinstance(codec, ProgressSource):
            codec.report_progress(self._note_progress)

    @property
    def has_graphs(self) -> bool:
        """True if windows of usual shapes are decoded by CUDA graphs."""
        return self._launcher.has_graphs

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    @property
    def is_finished(self) -> bool:
        return not self.unanswered and self._queue.is_finished

    def enter(self) -> None:
        """Prepare the calling thread, which must make all calls to `turn`: capture graphs and warm up."""
        self._launcher.enter()
        config = self._config
        policy = ChunkPolicy(config.first_frames, config.steady_frames)
        num_graphs = capture_shapes(self._launcher, self._codec, policy, config.max_batch)
        num_batches = warm_up(self._launcher, self._codec, policy, config.max_batch, config.warm_up_s)
        logger.info("captured %d graphs, warmed up with %d batches", num_graphs, num_batches)

    def fail_all(self, error: Exception) -> None:
        """Answer every chunk in progress with `error` and drop all jobs and batches."""
        self._jobs = []
        self._batches.clear()
        for pending in self.unanswered:
            self._fail(pending, error)

    def turn(self) -> None:
        """Run one iteration: accept new chunks, launch one batch, and answer the chunks of finished batches."""
        self._accept_chunks()
        self._counts.add("expired", len(self._sessions.expire()))
        if self.fails_pending:
            for job in self._jobs:
                self._fail(job.pending, Closing("the decoder is stopping"))
            self._jobs = []
        self._jobs = [job for job in self._jobs if self._is_wanted(job)]
        for is_first in (True, False):
            jobs = [job for job in self._jobs if self._is_first(job) == is_first]
            if jobs and not self._batches.is_full(is_first):
                self._launch(self._whole_graph(next_group(jobs, partial(self._limit, is_first), self._turns)))
        for batch, begun in self._batches.take_done():
            self._complete(batch, begun)

    def _is_first(self, job: ChunkJob) -> bool:
        return self._launcher.has_first_lane and job.session.dry_s is None

    def _whole_graph(self, group: list[ChunkJob]) -> list[ChunkJob]:
        """Return the first jobs of `group`, as many as fill a graph, or all if padding them is faster."""
        num_windows = len(group)
        num_added = padded_batch(num_windows) - num_windows
        if not num_added or not self._launcher.has_graphs:
            return group
        time = self.stopwatch.measured
        added_s = num_added * time.frame_s * group[0].window.codes.shape[1]
        return group[: padded_batch(num_windows) // 2] if added_s > time.batch_s else group

    def _limit(self, is_first: bool, window: FrameWindow) -> int:
        """Return the maximum number of jobs in a batch with this window.

        Chunks that arrive meanwhile wait for the batch, so it is short while a client waits for its first audio. On the
        host, all batches are short, because larger ones are hardly faster.
        """
        num_frames = window.codes.shape[1]
        most = batch_limit(self._codec.spec, num_frames, *limits_of(self._config.max_batch, is_first))
        window_s = num_frames * self.stopwatch.measured.frame_s
        longest_s = self._launcher.batch_s
        if self._launcher.fills_spare_time:
            longest_s = max(longest_s, self._sessions.spare_s() / 2)
        return most if most * window_s <= longest_s else math.ceil(longest_s / window_s)

    def _accept_chunks(self) -> None:
        """Turn queued chunks into jobs.

        Wait for a chunk only if nothing is in progress or, until the next check, if nothing can be launched.
        """
        timeout_s = 0.0 if self.unanswered else self._config.idle_timeout_s / 4
        if self._batches and all(self._batches.is_full(self._is_first(job)) for job in self._jobs):
            timeout_s = LOOK_S
        taken, abandoned = self._queue.next_chunks(timeout_s, {pending.utterance for pending in self.unanswered})
        for pending in taken:
            self.unanswered.add(pending)
        for utterance in abandoned:
            self._sessions.close(utterance)
        for pending in taken:
            self._admit(pending)

    def _admit(self, pending: PendingChunk) -> None:
        self._counts.add("chunks")
        try:
            check_connected(pending)
            session = self._session_of(pending)
            if self._is_answered(pending, session):
                return
            self._sessions.collect_for_alignment(session, pending.chunk)
            self._sessions.apply_reference(session, pending.chunk, pending.codes)
            pending = self._answer_early(pending, session)
            self._continue_chunk(pending, session)
        except Exception as error:
            self._fail(pending, error)

    def _answer_early(self, pending: PendingChunk, session: DecoderSession) -> PendingChunk:
        """Send a chunk's samples if the engine has decoded them; return the chunk that must still be decoded."""
        pcm = self._sessions.early_samples(session, pending.chunk, pending.codes)
        if pcm is None:
            return pending
        self._answer(pending, session, pcm if len(pcm) else None)
        decoded = pending.answered()
        self.unanswered.add(decoded)
        return decoded

    def _session_of(self, pending: PendingChunk) -> DecoderSession:
        """Return the session of a chunk; raise InvalidRequest if the chunk does not continue it."""
        kept = pending.chunk.kept
        form = pending.form
        if kept is None:
            return self._sessions.advance(pending.utterance, pending.chunk.index, form)
        assert pending.is_kept is not None, pending.utterance
        return self._sessions.kept_session(kept, form, pending.is_kept)

    def _is_answered(self, pending: PendingChunk, session: DecoderSession) -> bool:
        """Return True if an earlier connection already brought this chunk, after sending the stored samples again.

        If they are no longer stored, or earlier chunks are missing, raise InvalidRequest.
        """
        chunk = pending.chunk
        answers = session.answers
        if answers is None or chunk.kept is None or chunk.kept.number is None:
            return False
        answer = answers.find(chunk.kept.number)
        if answer is None or chunk.index == 0:
            return False
        samples, end = answer
        num_samples = 0 if samples is None else len(samples)
        self.unanswered.send(pending, samples, make_event(pending, session, num_samples, end, self._codec.spec))
        return True

    def _continue_chunk(self, pending: PendingChunk, session: DecoderSession) -> None:
        """Create a job for a chunk's next window, or answer the chunk if no window is complete."""
        window, is_last = self._sessions.next_window(session, pending.chunk, pending.codes)
        if window is None:
            self._answer(pending, session, None)
        else:
            self._jobs.append(ChunkJob(pending, session, window, self._sessions.due_s(session), is_last))

    def _is_wanted(self, job: ChunkJob) -> bool:
        """Return True if the job's utterance is still open; otherwise answer its chunk with an error."""
        is_wanted = self._sessions.is_open(job.pending.utterance, job.session)
        if not is_wanted:
            self.unanswered.refuse(job.pending, Cancelled("the utterance is over"))
        return is_wanted

    def _launch(self, group: list[ChunkJob]) -> None:
        """Launch a batch; if that fails, launch each job separately, so that only the faulty utterance fails."""
        self._jobs = [job for job in self._jobs if job not in group]
        group = still_connected(group, self._fail)
        if not group:
            return
        begun = self.clock()
        is_first = self._is_first(group[0])
        for job in group:  # an urgent chunk that arrived after the last launch would be in this batch
            job.pending.reply.wanted_s = min(job.session.dry_s or 0.0, self._launched_s[is_first])
        try:
            stamp(Hop.BATCH_IS_LAUNCHED)
            self._launched_s[is_first] = self._sessions.now()
            self._batches.add(LaunchedBatch(group, self._launcher, self._codec.spec, is_first), begun)
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0].pending, error)
                return
            for job in group:
                self._launch([job])

    def _note_progress(self) -> None:
        """Signal progress to all utterances, at most once per PROGRESS_S, because they wait while one is decoded."""
        now = time.monotonic()
        if now - self._signalled_s > PROGRESS_S:
            self._signalled_s = now
            self.unanswered.signal_progress()

    def _complete(self, batch: LaunchedBatch, begun: float) -> None:
        """Wait for a batch's samples, and answer its chunks or continue with their next windows."""
        try:
            pcm = batch.pcm()
            stamp(Hop.SAMPLES_ARRIVE)
            self._note_progress()
            spent_s = self.clock() - begun if batch.device_s is None else batch.device_s()
        except Exception as error:  # a device error, after which the states are lost as well
            for job in batch.jobs:
                self._fail(job.pending, error)
            return
        self._counts.add_batch(len(batch.jobs), batch.num_frames, spent_s)
        if not batch.has_company:
            num_windows = padded_batch(len(batch.jobs)) if self._launcher.has_graphs else len(batch.jobs)
            self.stopwatch.record(num_windows * batch.jobs[0].window.codes.shape[1], spent_s)
        for job, samples, address in zip(batch.jobs, pcm, batch.addresses(), strict=True):
            job.session.decode_s += spent_s / len(batch.jobs)
            try:
                if self._is_wanted(job):
                    self._finish(job, samples, address)
            except Exception as error:
                self._fail(job.pending, error)

    def _finish(self, job: ChunkJob, pcm: np.ndarray, address: int | None) -> None:
        """Answer the chunk of a decoded job with its audible samples, or continue with its next window."""
        if job.is_last and job.pending.is_answered:
            self.unanswered.hand_over(job.pending)
        elif job.is_last:
            pcm = job.window.without_padding(pcm, self._codec.spec.samples_per_frame)
            audible = job.session.audible_part(job.window, pcm, self._codec.spec)
            self._answer(job.pending, job.session, audible, address if audible is pcm else None)
        else:
            self._continue_chunk(job.pending, job.session)

    def _answer(
        self, pending: PendingChunk, session: DecoderSession, pcm: np.ndarray | None, at: int | None = None
    ) -> None:
        """Send the response for a chunk with samples to play, float32 [n]; `at` is their GPU address."""
        chunk = pending.chunk
        collected = session.collected
        if collected is not None:
            collected.add(chunk, pcm)
        if chunk.is_final:
            self._sessions.end(pending.utterance)
        samples = session.render(pcm, chunk.flushes, chunk.num_cut_frames * self._codec.spec.samples_per_frame)
        if pending.on_device is not None and at is not None and samples is pcm:  # unchanged since decoding
            pending.on_device(at)
        num_samples = 0 if samples is None else len(samples)
        self._counts.add("late", self._sessions.note_sent(session, num_samples))
        event = make_event(pending, session, num_samples, session.num_samples, self._codec.spec)
        if session.answers is not None and chunk.index:
            session.answers.add(samples, session.num_samples)
            check_connected(pending)
        if collected is None or not chunk.is_final:
            self.unanswered.send(pending, samples, event)
            return
        self.unanswered.hand_over(pending)
        collected.align(self._aligner, lambda words: send_aligned(pending, event, collected, words, self._counts))

    def _fail(self, pending: PendingChunk, error: Exception) -> None:
        """End the utterance of a chunk with an error; a lost connection does not end a session that can be resumed."""
        if pending.is_answered:
            self._sessions.note_failure(pending.utterance, error)
            self.unanswered.refuse(pending, error)
            return
        is_of_connection = isinstance(error, Cancelled) or (isinstance(error, InvalidRequest) and error.field == RESUME)
        if pending.chunk.kept is None or not is_of_connection:
            self._sessions.close(pending.utterance)
        self.unanswered.refuse(pending, error)
