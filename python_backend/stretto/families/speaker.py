"""Second model of a family, which speaks the text that the first one, the writer, generates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig


class SpeakerPrompts(Protocol):
    """Prompt writer of a speaker, whose family has a text track that is read row by row."""

    def check_writer(self, num_ids: int, voices: Sequence[str]) -> None:
        """Raise CheckpointError unless the speaker can speak a writer's replies.

        Args:
            num_ids: Number of ids that the writer may generate.
            voices: Names of the writer's voices.
        """
        ...

    def write(
        self,
        conversation: Sequence[int] | np.ndarray,
        words: Sequence[int],
        voice: str,
        states: np.ndarray | None = None,
        sampling: SamplingConfig | None = None,
        is_open: bool = False,
        grids: Sequence[tuple[int, int]] = (),
    ) -> Prompt:
        """Return the prompt that speaks `words`.

        Args:
            conversation: Ids of stream 0 in the writer's prompt; an array is faster.
            words: Ids of the writer's reply, or of its beginning if `is_open`.
            voice: Name of the voice, one of the writer's `Family.voices`.
            states: Hidden states of the writer in the rows of audio input and images, float32 [n, W], in order; None if
                there are none.
            sampling: Sampling options; None for the defaults.
            is_open: True if further words and the end of the text follow.
            grids: Height and width of each image, in rows of the prompt, in order.

        Raises:
            InvalidRequest: If the speaker cannot read the conversation.
        """
        ...

    def spoken(self, words: Sequence[int]) -> list[int]:
        """Return those ids of a writer's reply that the speaker may read as text."""
        ...


@dataclass(frozen=True)
class Speaker:
    """Model that speaks the replies of a writer (`Task.is_spoken`).

    Both have engines of their own (`engine/spoken_llm.py`). The reply's codec and its frames are those of the speaker's
    family, which the speaker's config.json names.

    Attributes:
        folder: Folder of the speaker's checkpoint in that of the writer.
        state_layer: Decoder layer of the writer whose input the speaker reads in the rows of audio input and images,
            counted as transformers counts `hidden_states`: 0 for the embedded rows.
        open_prompts: Function that returns the `SpeakerPrompts` for the speaker's checkpoint folder.
    """

    folder: str
    state_layer: int
    open_prompts: Callable[[Path], SpeakerPrompts] = field(compare=False, repr=False)
