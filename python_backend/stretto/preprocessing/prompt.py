"""Interface of prompt templates, one per family."""

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
    """A prompt from a template.

    Attributes:
        rows: Absolute token ids of every input stream, with delays applied, int32 [P, S].
        words: Words of the text to be spoken, for word timestamps; empty without them.
        audios: Audio inputs for the encoder that replace placeholder rows, in order.
        delayed_tail: See `Prompt`.
        track: See `Prompt`.
        num_reference_rows: See `Prompt`.
        voice: See `Prompt`.
    """

    rows: np.ndarray
    words: tuple[str, ...] = ()
    audios: tuple[HeardAudio, ...] = ()
    delayed_tail: np.ndarray | None = None
    track: tuple[int, ...] = ()
    num_reference_rows: int = 0
    voice: int = 0


class Template(Protocol):
    """Prompt writer of one family."""

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for a conversation.

        Args:
            task: Task that answers the conversation.
            pieces: The conversation.
            voice: Name of the voice, or None.
            manner: Other speaking options.

        Raises:
            InvalidRequest: A piece is too long or cannot be spoken.
        """
        ...


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the family's prompt template.

    Args:
        family: The model's family.
        checkpoint: Folder of the checkpoint.
        codec: The checkpoint's codec.
        device: Torch device for audio encoding.

    Raises:
        CheckpointError: The folder lacks a required file, or the family has no prompts.
    """
    module = module_of(family.name, "prompt")
    if module is None:
        raise CheckpointError(f"{family.name} has no prompts")
    return module.open_template(family, checkpoint, codec, device)
