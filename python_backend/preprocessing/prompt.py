"""How a family writes its prompts: the seam that each family's template fills."""

from typing import Protocol

import numpy as np

from python_backend.preprocessing.tiny_template import TinyTemplate


class Template(Protocol):
    """Writes prompts as rows [P, S] int32: absolute ids of every input stream, delays applied."""

    def speak(self, text: str, voice: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Rows that ask for `text` to be spoken, and the words that will be; InvalidRequest if it cannot be."""
        ...

    def listen(self, codes: np.ndarray) -> np.ndarray:
        """Rows that ask for `codes` [K, T] to be written down."""
        ...


TEMPLATES: dict[str, type[Template]] = {"tiny": TinyTemplate}
