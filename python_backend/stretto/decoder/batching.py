"""Windows of different utterances decoded as one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stretto.codec.base import CodecSpec, Window
from stretto.decoder.chunk_queue import PendingChunk
from stretto.decoder.launching import Launcher
from stretto.decoder.sessions import Session
from stretto.decoder.streaming import FrameWindow


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A chunk, the session that took it and the window that it completed.

    due_s: when its listener will have played all that came before; of a listener who waits in silence, when it came.
    is_heard: whether the window is the chunk's; else it is of the reference that the chunk goes on from.
    """

    pending: PendingChunk
    session: Session
    window: FrameWindow
    due_s: float
    is_heard: bool = True

    @property
    def is_alone(self) -> bool:
        """Whether it may share a batch with nobody."""
        return self.session.renderer.form.deterministic


class Batch:
    """Jobs with equal shapes, launched; every session carries its next state from then on."""

    def __init__(self, jobs: Sequence[Job], launcher: Launcher, spec: CodecSpec) -> None:
        self.jobs = jobs
        window = jobs[0].window
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


def next_group(jobs: Sequence[Job], limit: int) -> list[Job]:
    """Up to `limit` jobs of one shape, that of the job that is due first, or it alone; those that are due first go."""
    ordered = sorted(jobs, key=lambda job: job.due_s)
    first = ordered[0]
    if first.is_alone:
        return [first]
    return [job for job in ordered if job.window.shape == first.window.shape and not job.is_alone][:limit]


def stack(jobs: Sequence[Job]) -> Window:
    """The windows of jobs with equal shapes, as one."""
    windows = [job.window for job in jobs]
    return Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=torch.cat([job.session.state for job in jobs]),
    )
