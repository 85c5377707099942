"""Batches of windows from different utterances, and of passages whose codebooks are filled in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.codecs.refinement import Passage, Refinement, refinement_of
from stretto.decoder.chunk_queue import PendingChunk, check_waited_for
from stretto.decoder.launching import Launcher
from stretto.decoder.sessions import Session
from stretto.decoder.streaming import FrameWindow, Work
from stretto.errors import Cancelled


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One window to decode, or one passage to fill in, for a chunk.

    Attributes:
        pending: The chunk.
        session: Decoder state of its utterance.
        window: Window or passage.
        due_s: Time at which the client will have played everything sent before; the arrival time if nothing was sent.
        is_heard: True if the window is the chunk's last; False for windows of a reference or if others follow.
    """

    pending: PendingChunk
    session: Session
    window: Work
    due_s: float
    is_heard: bool = True

    @property
    def frames(self) -> FrameWindow:
        """Window of a job that is to be decoded."""
        assert isinstance(self.window, FrameWindow), self.pending.utterance
        return self.window

    @property
    def is_alone(self) -> bool:
        """True if the job may not share a batch."""
        return self.session.renderer.form.deterministic


class Batch:
    """Launched batch of jobs of equal shape; each session holds its next codec state from then on."""

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
        """Wait for, and return, the samples, float32 [B, n]."""
        samples = self._flight.pcm()
        assert samples.shape == self._expected, f"{self._codec} returned pcm {samples.shape}, expected {self._expected}"
        return samples

    @property
    def device_s(self) -> Callable[[], float] | None:
        """Function that returns the device time in seconds once the samples are there; None if decoded on the host."""
        return self._flight.device_s

    def addresses(self) -> list[int | None]:
        """Return the GPU address of each job's samples, valid as long as the batch lives, or None."""
        samples = self._flight.on_device
        return [None] * len(self.jobs) if samples is None else [row.data_ptr() for row in samples]


class FilledBatch:
    """Batch of passages whose codebooks have been filled in; sessions hold their codes. It has no samples."""

    num_frames = 0
    device_s = None

    def __init__(self, jobs: Sequence[Job], refinement: Refinement, told: Callable[[], None] | None = None) -> None:
        self.jobs = jobs
        passages = [job.window for job in jobs if isinstance(job.window, Passage)]
        for job, codes in zip(jobs, refinement.fill(passages, told), strict=True):
            assert job.session.filling is not None, job.pending.utterance
            job.session.filling.fill(codes)

    def pcm(self) -> list[None]:
        """Return None for each job."""
        return [None] * len(self.jobs)

    def addresses(self) -> list[None]:
        """Return None for each job."""
        return [None] * len(self.jobs)


def launch(
    jobs: Sequence[Job], launcher: Launcher, codec: Codec, told: Callable[[], None] | None = None
) -> Batch | FilledBatch:
    """Launch a group of windows, or fill in a group of passages.

    Args:
        jobs: Jobs of equal shape.
        launcher: Launcher for the codec's device.
        codec: The codec.
        told: Progress callback, called after each codebook that is filled in.
    """
    if isinstance(jobs[0].window, FrameWindow):
        return Batch(jobs, launcher, codec.spec)
    refinement = refinement_of(codec)
    assert refinement is not None, codec.spec.name
    return FilledBatch(jobs, refinement, told)


def batch_limit(spec: CodecSpec, most: int) -> int:
    """Return how many windows of a codec may share a batch, at most `most`.

    Codecs that decode whole utterances are limited to 1, so that none waits for longer ones.
    """
    return 1 if spec.max_frames is not None else most


def next_group(jobs: Sequence[Job], limit: int) -> list[Job]:
    """Return up to `limit` jobs with the shape of the earliest due job, earliest first (that job alone if required)."""
    ordered = sorted(jobs, key=lambda job: job.due_s)
    first = ordered[0]
    if first.is_alone:
        return [first]
    return [job for job in ordered if job.window.shape == first.window.shape and not job.is_alone][:limit]


def waited_for(jobs: Sequence[Job], fail: Callable[[PendingChunk, Exception], None]) -> list[Job]:
    """Return the jobs whose clients are still connected; fail the others."""
    found = list[Job]()
    for job in jobs:
        try:
            check_waited_for(job.pending)
            found.append(job)
        except Cancelled as error:
            fail(job.pending, error)
    return found


def stack(jobs: Sequence[Job]) -> Window:
    """Return the windows of jobs of equal shape as one batch."""
    windows = [job.frames for job in jobs]
    return Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=torch.cat([job.session.state for job in jobs]),
    )
