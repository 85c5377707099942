"""How a family writes its prompts: the seam that each family's template fills."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from stretto.codec.base import Codec
from stretto.errors import CheckpointError
from stretto.families.base import Family, Task
from stretto.families.registry import module_of
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.manner import PLAIN, Manner
from stretto.records.prompt import HeardAudio


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """A prompt as a template writes it.

    rows: [P, S] int32, absolute ids of every input stream, delays applied. words: of the text to be spoken, in order,
    where word times are told. audios: what is heard through an encoder in the place of rows of pads, in order.
    delayed_tail, track, num_reference_rows, voice: as those of `Prompt`.
    """

    rows: np.ndarray
    words: tuple[str, ...] = ()
    audios: tuple[HeardAudio, ...] = ()
    delayed_tail: np.ndarray | None = None
    track: tuple[int, ...] = ()
    num_reference_rows: int = 0
    voice: int = 0


class Template(Protocol):
    """Writes the prompts of one family."""

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """The rows after which the model begins to reply to `pieces`, which `task` answers; `manner` says how it
        speaks, as far as the family knows of any.

        InvalidRequest, naming the piece, where it cannot be written: too long, or not to be spoken.
        """
        ...


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """The family's template over a checkpoint's folder and its codec, for a device.

    CheckpointError where the folder lacks what it needs.
    """
    module = module_of(family.name, "prompt")
    if module is None:
        raise CheckpointError(f"{family.name} has no prompts")
    return module.open_template(family, checkpoint, codec, device)
