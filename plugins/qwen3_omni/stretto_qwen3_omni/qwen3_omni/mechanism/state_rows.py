"""Hidden states of a prompt, collected from the steps that compute it."""

from collections.abc import Sequence

import numpy as np

from stretto.family.base import Family
from stretto.records.prompt import InputAudio, InputImage, Prompt
from stretto_qwen3_omni.qwen3_omni.family import Talker


def spoken_inputs(family: Family, prompt: Prompt) -> tuple[InputAudio | InputImage, ...]:
    """Return the audio and images of a prompt for a spoken reply, or nothing if the reply is not spoken."""
    return prompt.inputs if family.task(prompt.task).speaks else ()


class StateRows:
    """Hidden states of a prompt's rows of audio and images. `inputs` has one or more, in order."""

    def __init__(self, inputs: Sequence[InputAudio | InputImage]) -> None:
        rows = [
            np.arange(model_input.first_row, model_input.first_row + model_input.num_rows) for model_input in inputs
        ]
        self._positions = np.concatenate(rows)
        self._is_known = np.zeros(len(self._positions), bool)
        self._states: np.ndarray | None = None

    @classmethod
    def of_prompt(cls, talker: Talker, family: Family, prompt: Prompt) -> "StateRows | None":
        """Return state rows without states; None for a prompt without audio and images (`Speaker.collect_states`)."""
        inputs = spoken_inputs(family, prompt)
        return cls(inputs) if inputs else None

    def put(self, rows: np.ndarray) -> None:
        """Add states, float32 [n, 1 + H], whose column 0 is the position. Known states may be added again."""
        if self._states is None:
            self._states = np.zeros((len(self._positions), rows.shape[1] - 1), np.float32)
        places = np.searchsorted(self._positions, rows[:, 0].astype(np.int64))
        self._states[places] = rows[:, 1:]
        self._is_known[places] = True

    @property
    def first_unknown(self) -> int | None:
        """Position of the first row whose state is unknown; None if all are known."""
        unknown = self._positions[~self._is_known]
        return int(unknown[0]) if len(unknown) else None

    @property
    def states(self) -> np.ndarray:
        """All states, float32 [n, H], in order; complete once `first_unknown` is None."""
        assert self._states is not None
        return self._states
