"""Batches of windows of different utterances, for the codec or for a refinement model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.codecs.refinement import Passage, Refinement, refinement_of
from stretto.decoder.chunk_queue import PendingChunk, check_connected
from stretto.decoder.launching import Launcher
from stretto.decoder.sessions import Session
from stretto.decoder.streaming import FrameWindow, Work
from stretto.errors import Cancelled


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work for one chunk: a window to decode, or codes whose missing codebooks a refinement model fills in.

    Attributes:
        pending: The chunk.
        session: Decoder state of its utterance.
        window: Window, or passage to fill in.
        due_s: Time at which the client will have played everything sent before; the arrival time if nothing was sent.
        is_last: True for the chunk's last window; False if others follow, and for windows of a voice reference.
    """

    pending: PendingChunk
    session: Session
    window: Work
    due_s: float
    is_last: bool = True

    @property
    def frames(self) -> FrameWindow:
        """Window of frames of a decoding job (not of a refinement job)."""
        assert isinstance(self.window, FrameWindow), self.pending.utterance
        return self.window

    @property
    def is_alone(self) -> bool:
        """True if the job may not share a batch, so that the samples do not depend on other utterances."""
        return self.session.renderer.form.deterministic


class Batch:
    """Batch of windows of equal shape that has been launched.

    The sessions get their next codec states immediately, although the device may still be computing them.
    """

    def __init__(self, jobs: Sequence[Job], launcher: Launcher, spec: CodecSpec) -> None:
        self.jobs = jobs
        window = jobs[0].frames
        self.num_frames = window.num_frames
        self._flight = launcher.launch(stack(jobs))
        self._expected = (len(jobs), spec.num_samples(window.num_frames, window.right))
        self._codec = spec.name
        for job, state in zip(jobs, self._flight.states.split(1), strict=True):
            job.session.state = state.clone()  # a view would keep the states of the whole batch alive

    def pcm(self) -> np.ndarray:
        """Wait for the samples and return them, float32 [B, n]."""
        samples = self._flight.pcm()
        assert samples.shape == self._expected, f"{self._codec} returned pcm {samples.shape}, expected {self._expected}"
        return samples

    @property
    def device_s(self) -> Callable[[], float] | None:
        """Function that returns the device time in seconds, callable once the samples are available.

        None on the host.
        """
        return self._flight.device_s

    def addresses(self) -> list[int | None]:
        """Return the GPU address of each job's samples, valid as long as this object exists; None on the host."""
        samples = self._flight.on_device
        return [None] * len(self.jobs) if samples is None else [row.data_ptr() for row in samples]


class FilledBatch:
    """Batch of refinement jobs, already run: the sessions have the completed codes. It has no samples."""

    num_frames = 0
    device_s = None

    def __init__(
        self, jobs: Sequence[Job], refinement: Refinement, on_progress: Callable[[], None] | None = None
    ) -> None:
        self.jobs = jobs
        passages = [job.window for job in jobs if isinstance(job.window, Passage)]
        for job, codes in zip(jobs, refinement.fill(passages, on_progress), strict=True):
            assert job.session.filling is not None, job.pending.utterance
            job.session.filling.fill(codes)

    def pcm(self) -> list[None]:
        """Return None for each job."""
        return [None] * len(self.jobs)

    def addresses(self) -> list[None]:
        """Return None for each job."""
        return [None] * len(self.jobs)


def launch(
    jobs: Sequence[Job], launcher: Launcher, codec: Codec, on_progress: Callable[[], None] | None = None
) -> Batch | FilledBatch:
    """Launch a batch of windows, or fill in the codebooks of a batch of passages.

    Args:
        jobs: Jobs of equal shape.
        launcher: Launcher for the codec's device.
        codec: The codec.
        on_progress: Progress callback, called after each codebook that is filled in.
    """
    if isinstance(jobs[0].window, FrameWindow):
        return Batch(jobs, launcher, codec.spec)
    refinement = refinement_of(codec)
    assert refinement is not None, codec.spec.name
    return FilledBatch(jobs, refinement, on_progress)


def batch_limit(spec: CodecSpec, max_batch: int) -> int:
    """Return the maximum number of windows per batch for a codec: `max_batch`, or 1 if it decodes whole utterances.

    In a batch of whole utterances, short ones would wait for longer ones.
    """
    return 1 if spec.max_frames is not None else max_batch


def next_group(jobs: Sequence[Job], limit: int) -> list[Job]:
    """Return the jobs of the next batch, earliest deadline first.

    These are the earliest job and up to `limit` - 1 others of the same shape, or the earliest job alone if it may not
    share a batch.
    """
    ordered = sorted(jobs, key=lambda job: job.due_s)
    first = ordered[0]
    if first.is_alone:
        return [first]
    return [job for job in ordered if job.window.shape == first.window.shape and not job.is_alone][:limit]


def still_connected(jobs: Sequence[Job], fail: Callable[[PendingChunk, Exception], None]) -> list[Job]:
    """Return the jobs whose clients are still connected.

    Args:
        jobs: Jobs to check.
        fail: Called with the chunk and the error of each other job.
    """
    found = list[Job]()
    for job in jobs:
        try:
            check_connected(job.pending)
            found.append(job)
        except Cancelled as error:
            fail(job.pending, error)
    return found


def stack(jobs: Sequence[Job]) -> Window:
    """Return the windows of jobs of equal shape as one batch for the codec."""
    windows = [job.frames for job in jobs]
    return Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=torch.cat([job.session.state for job in jobs]),
    )
