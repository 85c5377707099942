"""A conversation as it grows: the turns so far, as the next request sends them all again."""

from pathlib import Path
from typing import Any

import numpy as np

from stretto_client.inputs import Audio

CODES = ".npy"


class Conversation:
    """`turns` for `SpeechClient.converse`, and the files that they mean, in `audio`."""

    def __init__(self, instruction: str | None = None, voice: Path | None = None):
        self.turns: list[dict[str, Any]] = []
        self.audio: list[Audio] = []
        if instruction is not None or voice is not None:
            self._add("system", voice, instruction)

    def say(self, text: str | None, file: Path | None = None) -> None:
        """Add a turn of the user: text, what a file holds (audio, or codes [S, T] in .npy), or both.

        ValueError where the codes are none; OSError where there is no file.
        """
        self._add("user", file, text)

    def answer(self, text: str, codes: np.ndarray | None) -> None:
        """Add the reply: its text, and its codes [S, T] where they are known."""
        spoken = {} if codes is None else {"codes": codes.tolist()}
        written = {"text": text} if text else {}
        if spoken or written:
            self.turns.append({"role": "assistant"} | written | spoken)

    def take_back(self) -> None:
        """Forget the last turn, which has got no answer."""
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
