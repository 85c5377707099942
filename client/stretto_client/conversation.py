"""History of a conversation, which each request sends again as a whole."""

from pathlib import Path
from typing import Any

import numpy as np

from stretto_client.inputs import Audio

CODES = ".npy"


class Conversation:
    """Turns for `SpeechClient.converse`, and the files that they refer to, in `audio`."""

    def __init__(self, instruction: str | None = None, voice: Path | None = None):
        self.turns: list[dict[str, Any]] = []
        self.audio: list[Audio] = []
        if instruction is not None or voice is not None:
            self._add("system", voice, instruction)

    def say(self, text: str | None, file: Path | None = None) -> None:
        """Add a turn of the user: text, the content of a file (audio, or codes [S, T] in .npy), or both.

        Raises:
            ValueError: The file's codes are invalid.
            OSError: The file cannot be read.
        """
        self._add("user", file, text)

    def answer(self, text: str, codes: np.ndarray | None) -> None:
        """Add the reply: its text, and its codes [S, T] if known."""
        spoken = {} if codes is None else {"codes": codes.tolist()}
        written = {"text": text} if text else {}
        if spoken or written:
            self.turns.append({"role": "assistant"} | written | spoken)

    def take_back(self) -> None:
        """Remove the last turn, which has not been answered."""
        if "audio" in self.turns.pop():
            self.audio.pop()

    def _add(self, role: str, file: Path | None, text: str | None) -> None:
        heard: dict[str, Any] = {}
        if file is not None and file.suffix == CODES:
            heard = {"codes": _codes(file)}
        elif file is not None:
            self.audio.append(file.read_bytes())
            heard = {"audio": "audio"}
        self.turns.append({"role": role} | heard | ({} if text is None else {"text": text}))


def _codes(file: Path) -> list[list[int]]:
    codes = np.load(file)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{file}: expected integer codes [S, T], got {codes.shape} {codes.dtype}")
    rows: list[list[int]] = codes.tolist()
    return rows
