"""A request as it reaches the server, and the object that turns it into a prompt."""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from python_backend.codec.base import Codec
from python_backend.codec.registry import load_codec
from python_backend.errors import InvalidRequest
from python_backend.families.base import Family, Task
from python_backend.families.prompt import Prompt
from python_backend.families.registry import family_at
from python_backend.preprocessing.audio import check_pcm, read_file, resample
from python_backend.preprocessing.json_field import shown
from python_backend.preprocessing.messages import Turn, read_messages
from python_backend.preprocessing.options import read_options
from python_backend.preprocessing.prompt import TEMPLATES


@dataclass(frozen=True, slots=True)
class RawRequest:
    """The inputs of the ensemble, as they came. None: absent. Strings may be UTF-8 bytes.

    audio: bytes of a wav, flac, ogg or mp3 file. pcm_in: [n] float32, mono samples at `sample_rate` Hz.
    """

    text: str | bytes | None = None
    audio: bytes | None = None
    pcm_in: np.ndarray | None = None
    sample_rate: int | None = None
    messages: str | bytes | None = None
    task: str | bytes | None = None
    options: str | bytes | None = None


class Preprocessor:
    """Turns requests into prompts for the family whose checkpoint lies in `checkpoint`.

    Its `config.json` names the family (`speech_family`); CheckpointError when it does not. The codec is loaded
    with the object, so that the first request waits for nothing.
    """

    def __init__(self, checkpoint: Path, codec: Codec | None = None):
        self.family = family_at(checkpoint)
        self.codec = codec or load_codec(self.family.codec, checkpoint)
        self.template = TEMPLATES[self.family.name]()

    def prepare(self, raw: RawRequest) -> Prompt:
        """The prompt of `raw`, its seed drawn when none was asked for.

        InvalidRequest names the field, the limit and what came.
        """
        turn = read_turn(raw)
        task = read_task(string("task", raw.task), turn, self.family)
        text = string("options", raw.options)
        spec = self.codec.spec
        options = read_options(text, self.family, task, spec.frame_rate, spec.right_frames)
        sampling = options.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(32))
        if turn.text is not None:
            rows, words = self.template.speak(turn.text, options.voice)
            return Prompt(task.name, rows, sampling, words, options.delivery)
        return Prompt(task.name, self.template.listen(self.codec.encode(self._listen(raw))), sampling)

    def _listen(self, raw: RawRequest) -> np.ndarray:
        """The audio of `raw` as [n] float32 at the codec's rate."""
        spec, max_s = self.codec.spec, self.family.max_audio_s
        if raw.audio is not None:
            field, (pcm, sample_rate) = "audio", read_file(raw.audio, max_s)
        else:
            assert raw.pcm_in is not None
            check_pcm(raw.pcm_in, raw.sample_rate, max_s)
            field, pcm, sample_rate = "pcm_in", raw.pcm_in, int(raw.sample_rate or 0)
        pcm = resample(pcm, sample_rate, spec.sample_rate)
        if len(pcm) < spec.samples_per_frame:
            shortest = spec.samples_per_frame / spec.sample_rate
            raise InvalidRequest(field, f"at least {shortest:g} s", f"{len(pcm) / spec.sample_rate:.4f} s")
        return pcm


def string(field: str, value: str | bytes | None) -> str | None:
    """`value` as text; InvalidRequest when it is not UTF-8."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, "UTF-8", f"a byte {value[error.start]:#04x} at {error.start}") from error


def read_turn(raw: RawRequest) -> Turn:
    """What the caller says, from exactly one of the inputs that can say it."""
    given = [name for name in ("text", "audio", "pcm_in", "messages") if getattr(raw, name) is not None]
    if raw.sample_rate is not None and "pcm_in" not in given:
        raise InvalidRequest("sample_rate", "none without pcm_in", raw.sample_rate)
    if raw.messages is not None:
        turn = read_messages(string("messages", raw.messages) or "")
        expected = [name for name in (turn.audio_input, "messages") if name]
        if given != expected:
            raise InvalidRequest("messages", f"the inputs {' and '.join(expected)}", " and ".join(given))
        return turn
    if len(given) != 1:
        raise InvalidRequest("text", "exactly one of text, audio, pcm_in and messages", " and ".join(given) or "none")
    return Turn(text=string("text", raw.text)) if given == ["text"] else Turn(audio_input=given[0])


def read_task(name: str | None, turn: Turn, family: Family) -> Task:
    """The task called `name`; without a name, the family's first that takes what was given."""
    kind = "text" if turn.text is not None else "audio"
    takers = [task for task in family.tasks if task.needs == (kind,)]
    if name is None and takers:
        return takers[0]
    for task in family.tasks:
        if task.name == name and task not in takers:
            raise InvalidRequest(task.needs[0], f"{' and '.join(task.needs)} for task {name!r}", kind)
        if task.name == name:
            return task
    raise InvalidRequest("task", f"one of {', '.join(task.name for task in family.tasks)}", shown(name))
