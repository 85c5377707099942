"""Windows of different utterances decoded as one batch, and passages filled in as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stretto.codec.base import Codec, CodecSpec, Window
from stretto.codec.refinement.base import Passage, Refinement, refinement_of
from stretto.decoder.chunk_queue import PendingChunk, check_waited_for
from stretto.decoder.filling import Work
from stretto.decoder.launching import Launcher
from stretto.decoder.sessions import Session
from stretto.decoder.streaming import FrameWindow
from stretto.errors import Cancelled


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A chunk, the session that took it and the window that it completed, or the passage to be filled in before.

    due_s: when its listener will have played all that came before; of a listener who waits in silence, when it came.
    is_heard: whether the window is the chunk's last; else it is of the reference that the chunk goes on from, or others
    follow.
    """

    pending: PendingChunk
    session: Session
    window: Work
    due_s: float
    is_heard: bool = True

    @property
    def frames(self) -> FrameWindow:
        """The window of a job that is to be decoded."""
        assert isinstance(self.window, FrameWindow), self.pending.utterance
        return self.window

    @property
    def is_alone(self) -> bool:
        """Whether it may share a batch with nobody."""
        return self.session.renderer.form.deterministic


class Batch:
    """Jobs with equal shapes, launched; every session carries its next state from then on."""

    def __init__(self, jobs: Sequence[Job], launcher: Launcher, spec: CodecSpec) -> None:
        self.jobs = jobs
        window = jobs[0].frames
        self.num_frames = window.num_frames
        self._flight = launcher.launch(stack(jobs))
        self._expected = (len(jobs), spec.num_samples(window.num_frames, window.right))
        self._codec = spec.name
        for job, state in zip(jobs, self._flight.states.split(1), strict=True):
            job.session.state = state.clone()  # a view would keep the whole batch's states while one utterance idles

    def pcm(self) -> np.ndarray:
        """Samples [B, n] float32; waits for them."""
        samples = self._flight.pcm()
        assert samples.shape == self._expected, f"{self._codec} gave pcm {samples.shape} instead of {self._expected}"
        return samples

    @property
    def device_s(self) -> Callable[[], float] | None:
        """What it took the device, once the samples are there; None where the host has decoded it."""
        return self._flight.device_s

    def addresses(self) -> list[int | None]:
        """Where on a GPU the samples of each job lie, for as long as the batch lives."""
        samples = self._flight.on_device
        return [None] * len(self.jobs) if samples is None else [row.data_ptr() for row in samples]


class FilledBatch:
    """Passages, filled in by the time it is made; every session carries its codes from then on. Nothing is heard."""

    num_frames = 0
    device_s = None

    def __init__(self, jobs: Sequence[Job], refinement: Refinement, told: Callable[[], None] | None = None) -> None:
        self.jobs = jobs
        passages = [job.window for job in jobs if isinstance(job.window, Passage)]
        for job, codes in zip(jobs, refinement.fill(passages, told), strict=True):
            assert job.session.filling is not None, job.pending.utterance
            job.session.filling.fill(codes)

    def pcm(self) -> list[None]:
        """No samples, for each job."""
        return [None] * len(self.jobs)

    def addresses(self) -> list[None]:
        """As those of Batch: nowhere."""
        return [None] * len(self.jobs)


def launch(
    jobs: Sequence[Job], launcher: Launcher, codec: Codec, told: Callable[[], None] | None = None
) -> Batch | FilledBatch:
    """A group of windows on its way through the codec, or one of passages that has been filled in.

    told: called behind each codebook that is.
    """
    if isinstance(jobs[0].window, FrameWindow):
        return Batch(jobs, launcher, codec.spec)
    refinement = refinement_of(codec)
    assert refinement is not None, codec.spec.name
    return FilledBatch(jobs, refinement, told)


def batch_limit(spec: CodecSpec, most: int) -> int:
    """How many windows of a codec may share a batch, where `most` may of any.

    Whole utterances are long, and a batch of them is decoded one by one: none waits for those behind it.
    """
    return 1 if spec.max_frames is not None else most


def next_group(jobs: Sequence[Job], limit: int) -> list[Job]:
    """Up to `limit` jobs of one shape, that of the job that is due first, or it alone; those that are due first go."""
    ordered = sorted(jobs, key=lambda job: job.due_s)
    first = ordered[0]
    if first.is_alone:
        return [first]
    return [job for job in ordered if job.window.shape == first.window.shape and not job.is_alone][:limit]


def waited_for(jobs: Sequence[Job], fail: Callable[[PendingChunk, Exception], None]) -> list[Job]:
    """Those of some jobs whose callers have not left while they waited; the others fail."""
    found = list[Job]()
    for job in jobs:
        try:
            check_waited_for(job.pending)
            found.append(job)
        except Cancelled as error:
            fail(job.pending, error)
    return found


def stack(jobs: Sequence[Job]) -> Window:
    """The windows of jobs with equal shapes, as one."""
    windows = [job.frames for job in jobs]
    return Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=torch.cat([job.session.state for job in jobs]),
    )
