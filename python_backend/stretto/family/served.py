"""Family of a served checkpoint as requests use it: with a speaker, a combination of writer and speaker."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.family.base import Family, Task
from stretto.family.plugin import family_at

# Fields of a family that describe its frames and how they are sampled.
FRAME_FIELDS = (
    *("layout", "codec", "frame_rate", "first_chunk_frames", "steady_chunk_frames", "warm_up", "tail", "drawing"),
    *("depth", "end_frame", "guided_streams", "mechanism"),
)


class SpokenTask(Task):
    """Task in which the writer generates text and the speaker speaks it. The task's segments are the writer's."""

    @property
    def has_audio_segment(self) -> bool:
        """True, because the speaker's reply is an audio segment."""
        return True


def speaking_folder(checkpoint: Path) -> Path:
    """Return the folder of the model that generates frames: that of the speaker, or `checkpoint` if there is none."""
    speaker = family_at(checkpoint).mechanism.speaker
    return checkpoint if speaker is None else checkpoint / speaker.folder


def served_family(checkpoint: Path) -> Family:
    """Return the family for requests. With a speaker, it has the speaker's frames and sampling defaults."""
    family = family_at(checkpoint)
    if family.mechanism.speaker is None:
        return family
    speaking = family_at(checkpoint / family.mechanism.speaker.folder)
    defaults = speaking.tasks[0].sampling
    tasks = tuple(
        replace(task, sampling=replace(defaults, text=task.sampling.text)) if isinstance(task, SpokenTask) else task
        for task in family.tasks
    )
    frames: dict[str, Any] = {name: getattr(speaking, name) for name in FRAME_FIELDS}
    return replace(family, tasks=tasks, **frames)
