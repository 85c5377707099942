"""Batches of windows from different utterances, and the order in which they are formed.

The job with the earliest deadline comes first: its client will underrun next, or is still waiting for its first audio.
Client hosts take turns in having the first job of a batch.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from stretto.codecs.base import CodecSpec
from stretto.decoder.chunk_queue import PendingChunk, check_connected
from stretto.decoder.launching import Launcher
from stretto.decoder.sessions import DecoderSession
from stretto.decoder.windows import FrameWindow
from stretto.errors import Cancelled


@dataclass(frozen=True, slots=True, eq=False)
class ChunkJob:
    """A window of a chunk to decode.

    Attributes:
        due_s: Time at which the client will have played everything sent so far; before the first audio, the time at
            which the job was created.
        is_last: True for the chunk's last window; False for earlier windows and for windows of a voice reference.
    """

    pending: PendingChunk
    session: DecoderSession
    window: FrameWindow
    due_s: float
    is_last: bool = True

    @property
    def is_alone(self) -> bool:
        """True if the job may not share a batch, so that its samples do not depend on other utterances."""
        return self.session.renderer.form.deterministic


class LaunchedBatch:
    """Batch of windows of equal shape that has been launched.

    The sessions get their next codec states immediately, although the device may still be computing them.

    Attributes:
        is_first: True for a batch of first chunks with a lane of their own.
        has_company: True if a batch of the other lane may have run meanwhile, so that this one took longer.
    """

    def __init__(self, jobs: Sequence[ChunkJob], launcher: Launcher, spec: CodecSpec, is_first: bool = False) -> None:
        self.jobs = jobs
        self.is_first = is_first
        self.has_company = False
        window = jobs[0].window
        self.num_frames = window.num_frames
        self._before = [job.session.state for job in jobs]  # kept until the device has read them
        self._flight = launcher.launch([job.window for job in jobs], self._before, is_first)
        self._expected = (len(jobs), spec.num_samples(window.num_frames, window.right))
        self._codec = spec.name
        for job, state in zip(jobs, self._flight.states, strict=True):
            job.session.state = state

    def pcm(self) -> np.ndarray:
        """Wait for the samples and return them, float32 [B, n]."""
        samples = self._flight.pcm()
        assert samples.shape == self._expected, f"{self._codec} returned pcm {samples.shape}, expected {self._expected}"
        return samples

    @property
    def is_done(self) -> bool:
        """True once the samples are available."""
        return self._flight.is_done()

    @property
    def device_s(self) -> Callable[[], float] | None:
        """Function that returns the time on the device once the samples are available; None on the host."""
        return self._flight.device_s

    def addresses(self) -> list[int | None]:
        """Return the GPU address of each job's samples, valid while this object exists; None on the host."""
        samples = self._flight.on_device
        return [None] * len(self.jobs) if samples is None else [row.data_ptr() for row in samples]


class BatchesInFlight:
    """Batches that have been launched and not completed, each with its launch time.

    The lane of first chunks has at most one, the other lane one more than `depth`.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._batches: list[tuple[LaunchedBatch, float]] = []

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: LaunchedBatch, begun: float) -> None:
        """Add a batch. If the other lane has batches, mark them and this one as slower, because they share the GPU."""
        for other in (other for other, _ in self._batches if other.is_first != batch.is_first):
            other.has_company = True
            batch.has_company = True
        self._batches.append((batch, begun))

    def is_full(self, is_first: bool) -> bool:
        """Return True if no batch may be added to a lane."""
        num_batches = sum(batch.is_first == is_first for batch, _ in self._batches)
        return num_batches > (0 if is_first else self._depth)

    def take_done(self) -> list[tuple[LaunchedBatch, float]]:
        """Remove and return the completed batches at the front of each lane."""
        done = list[tuple[LaunchedBatch, float]]()
        left = list[tuple[LaunchedBatch, float]]()
        busy = set[bool]()
        for batch, begun in self._batches:
            if batch.is_first not in busy and batch.is_done:
                done.append((batch, begun))
            else:
                busy.add(batch.is_first)
                left.append((batch, begun))
        self._batches = left
        return done

    def clear(self) -> None:
        self._batches = []


MAX_HOSTS = 1024


class HostTurns:
    """Order in which client hosts have the first job of a batch.

    Without turns, a host whose clients have all underrun would come before every client that still waits for audio.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, None] = {}  # in the order of their last turns

    def next(self, hosts: Collection[str]) -> str:
        """Return the host in `hosts` whose last turn was longest ago."""
        waiting = [host for host in self._hosts if host in hosts]
        host = next((new for new in hosts if new not in self._hosts), None)
        host = waiting[0] if host is None else host
        self._hosts.pop(host, None)
        self._hosts[host] = None
        if len(self._hosts) > MAX_HOSTS:
            del self._hosts[next(iter(self._hosts))]
        return host


def next_group(jobs: Sequence[ChunkJob], limit: Callable[[FrameWindow], int], turns: HostTurns) -> list[ChunkJob]:
    """Return the jobs of the next batch: the next host's first job, and others of the same shape.

    Jobs are sorted by deadline; those of clients that have no audio yet come first. If the first job may not share a
    batch, it is returned alone.

    Args:
        limit: Returns the maximum number of jobs per batch, given the window of one of them.
    """
    ordered = sorted(jobs, key=lambda job: (job.session.dry_s is not None, job.due_s))
    host = turns.next(dict.fromkeys(job.pending.reply.host for job in ordered))
    first = next(job for job in ordered if job.pending.reply.host == host)
    if first.is_alone:
        return [first]
    others = (job for job in ordered if job.window.shape == first.window.shape and not job.is_alone)
    return [first, *islice((job for job in others if job is not first), limit(first.window) - 1)]


def still_connected(jobs: Sequence[ChunkJob], fail: Callable[[PendingChunk, Exception], None]) -> list[ChunkJob]:
    """Return the jobs whose clients are connected or whose sessions can be resumed, and call `fail` for the others."""
    connected = list[ChunkJob]()
    for job in jobs:
        try:
            if job.session.answers is None:
                check_connected(job.pending)
            connected.append(job)
        except Cancelled as error:
            fail(job.pending, error)
    return connected
