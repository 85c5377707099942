"""Windows of different utterances decoded as one batch."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from python_backend.codec.base import Codec, Window
from python_backend.decoder.mailbox import Delivery
from python_backend.decoder.sessions import Session
from python_backend.decoder.streaming import FrameWindow


@dataclass(frozen=True, slots=True)
class Job:
    """A chunk, the session that took it and the window that it completed."""

    delivery: Delivery
    session: Session
    window: FrameWindow


def group_by_shape(jobs: list[Job]) -> list[list[Job]]:
    """Jobs whose windows can be stacked, together; those that start an utterance first: somebody waits in silence."""
    groups: defaultdict[tuple[int, int, int], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.window.shape].append(job)
    return sorted(groups.values(), key=lambda group: group[0].window.first > 0)


def decode_group(codec: Codec, group: list[Job]) -> np.ndarray:
    """Pcm [B, n] float32 of jobs with equal shapes; afterwards every session carries its next state."""
    windows = [job.window for job in group]
    stacked = Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=torch.cat([job.session.state for job in group]),
    )
    pcm, states = codec.decode(stacked)
    expected = (len(group), codec.spec.num_samples(windows[0].num_frames, windows[0].right))
    assert pcm.shape == expected, f"{codec.spec.name} gave pcm {tuple(pcm.shape)} instead of {expected}"
    samples = pcm.float().cpu().numpy()
    for job, state in zip(group, states.split(1), strict=True):
        job.session.state = state
    return samples
