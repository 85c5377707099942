"""A conversation as it grows: the turns so far, as the next request sends them all again."""

from pathlib import Path
from typing import Any

import numpy as np

from client.inputs import Audio

CODES = ".npy"


class Conversation:
    """`turns` for `SpeechClient.converse`, and the `audio` that they mean.

    A request has room for the audio of two turns: a file in the input `audio`, samples in `pcm_in`. What comes as codes
    lies in its turn, and takes none of it.
    """

    def __init__(self, instruction: str | None = None, voice: Path | None = None):
        self.turns: list[dict[str, Any]] = []
        self._audio: dict[str, Audio] = {}
        if instruction is not None or voice is not None:
            self._add("system", voice, instruction)

    @property
    def audio(self) -> list[Audio]:
        """What the turns mean by `audio` and by `pcm_in`."""
        return list(self._audio.values())

    def say(self, text: str | None, file: Path | None = None) -> None:
        """Add a turn of the user: text, what a file holds (audio, or codes [S, T] in .npy), or both.

        ValueError where there is no room for more audio, or the codes are none; OSError where there is no file.
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
        self._audio.pop(self.turns.pop().get("audio", ""), None)

    def _add(self, role: str, file: Path | None, text: str | None) -> None:
        heard: dict[str, Any] = {}
        if file is not None and file.suffix == CODES:
            heard = {"codes": _codes(file)}
        elif file is not None:
            heard = {"audio": self._keep(file)}
        self.turns.append({"role": role} | heard | ({} if text is None else {"text": text}))

    def _keep(self, file: Path) -> str:
        """The name of the input that carries a file's audio from now on."""
        if "audio" not in self._audio:
            self._audio["audio"] = file.read_bytes()
            return "audio"
        if "pcm_in" in self._audio:
            raise ValueError(f"{file}: a conversation has room for the audio of two turns, and has heard two")
        self._audio["pcm_in"] = _samples(file)
        return "pcm_in"


def _samples(file: Path) -> tuple[np.ndarray, int]:
    import soundfile  # a first file goes as it is

    try:
        pcm, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(str(error)) from None
    return pcm.mean(axis=1), sample_rate


def _codes(file: Path) -> list[list[int]]:
    codes = np.load(file)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{file}: expected integer codes [S, T], got {codes.shape} {codes.dtype}")
    rows: list[list[int]] = codes.tolist()
    return rows
