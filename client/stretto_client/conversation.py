"""Conversations and recorded voices that are sent with a request."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput

from stretto_client.markup import Markup
from stretto_client.schema import Encoding, OptionsRecord, SpeechOptions
from stretto_client.shared_memory import Sharing
from stretto_client.speech_stream import Audio, audio_inputs, options_json, strings


@dataclass(frozen=True, slots=True, eq=False)
class RecordedVoice:
    """Voice of a recording, for models that accept one in a system turn (`docs/families.md`).

    Attributes:
        audio: Path or contents of a file, or (samples [n], rate in Hz).
        text: Transcript of the recording. Higgs Audio requires it. Qwen3-TTS's Base continues from it; without it, the
            recording only determines the sound of the voice. Other models do not use it.
    """

    audio: Audio
    text: str = ""

    def inputs(self, text: str, sharing: Sharing | None) -> list[InferInput]:
        """Return the input tensors of a request for `text` in this voice, in the memory of `sharing` if given."""
        system = {"role": "system", "audio": "pcm_in" if isinstance(self.audio, tuple) else "audio"}
        transcript = {"text": self.text} if self.text else {}
        turns = [system | transcript, {"role": "user", "text": text}]
        return [*audio_inputs(self.audio, sharing=sharing), *strings(messages=json.dumps(turns))]


class SpeakOptions(SpeechOptions, total=False):
    """Options of a speech request: those of the server, and a voice that may also be a recording."""

    voice: str | RecordedVoice | None


class SpeakArguments(SpeakOptions, total=False):
    """Arguments of `SpeechClient.speak` except the text."""

    task: str
    encoding: Encoding | None
    sample_rate: int | None
    markup: Markup


class TaskOptions(OptionsRecord, total=False):
    """Arguments of `SpeechClient.transcribe` and `SpeechClient.converse` except the input."""

    task: str


def with_seed(options: SpeakOptions) -> SpeakOptions:
    """Return the options with a random 32-bit seed if they have none, so that several requests can share it."""
    return options if options.get("seed") is not None else {**options, "seed": secrets.randbits(32)}


def speech_inputs(text: str, task: str, options: SpeakOptions, sharing: Sharing | None) -> list[InferInput]:
    """Return the input tensors of a speech request.

    Args:
        text: The text.
        task: Name of the model's task.
        options: Options of the server, and the voice.
        sharing: Shared memory for audio; None to send it in the request.
    """
    voice = options.get("voice")
    if not isinstance(voice, RecordedVoice):
        return strings(text=text, task=task, options=options_json(options))
    others = {name: value for name, value in options.items() if name != "voice"}
    return [*voice.inputs(text, sharing), *strings(task=task, options=options_json(others))]


CODES = ".npy"


class Conversation:
    """Turns for `SpeechClient.converse`, and in `audio` the files that they refer to.

    Args:
        instruction: Text of a system turn, or None.
        voice: Recording of the voice for the replies, or None.
    """

    def __init__(self, instruction: str | None = None, voice: Path | None = None):
        self.turns: list[dict[str, Any]] = []
        self.audio: list[Audio] = []
        if instruction is not None or voice is not None:
            self._add("system", voice, instruction)

    def add_user(self, text: str | None, file: Path | None = None) -> None:
        """Add a turn of the user.

        Args:
            text: Text, or None.
            file: Audio file, or codes [S, T] in .npy; None for text alone.

        Raises:
            ValueError: The file's codes are invalid.
            OSError: The file cannot be read.
        """
        self._add("user", file, text)

    def add_reply(self, text: str, codes: NDArray[np.int32] | None) -> None:
        """Add the reply: its text, and its codes [S, T] if they are known."""
        spoken = {} if codes is None else {"codes": codes.tolist()}
        written = {"text": text} if text else {}
        if spoken or written:
            self.turns.append({"role": "assistant"} | written | spoken)

    def remove_last(self) -> None:
        """Remove the last turn, which has no reply."""
        if "audio" in self.turns.pop():
            self.audio.pop()

    def _add(self, role: str, file: Path | None, text: str | None) -> None:
        audio_fields: dict[str, Any] = {}
        if file is not None and file.suffix == CODES:
            audio_fields = {"codes": _codes(file)}
        elif file is not None:
            self.audio.append(file.read_bytes())
            audio_fields = {"audio": "audio"}
        self.turns.append({"role": role} | audio_fields | ({} if text is None else {"text": text}))


def _codes(file: Path) -> list[list[int]]:
    codes = np.load(file)
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{file}: expected integer codes [S, T], got {codes.shape} {codes.dtype}")
    rows: list[list[int]] = codes.tolist()
    return rows
