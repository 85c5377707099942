"""A request as it reaches the server, and the object that turns it into a prompt."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.codec.registry import load_codec
from stretto.errors import InvalidRequest
from stretto.families.registry import family_at
from stretto.preprocessing.audio import MAX_FILES, check_pcm, read_file, resample
from stretto.preprocessing.conversation import Piece, choose_task
from stretto.preprocessing.messages import Turn, read_messages
from stretto.preprocessing.options import read_options
from stretto.preprocessing.prompt import open_template
from stretto.records.prompt import Prompt


@dataclass(frozen=True, slots=True)
class RawRequest:
    """The inputs of the ensemble, as they came. None: absent. Strings may be UTF-8 bytes.

    audio: bytes of a wav, flac, ogg or mp3 file, or of several, one for each turn of `messages` that means one.
    pcm_in: [n] float32, mono samples at `sample_rate` Hz.
    """

    text: str | bytes | None = None
    audio: bytes | tuple[bytes, ...] | None = None
    pcm_in: np.ndarray | None = None
    sample_rate: int | None = None
    messages: str | bytes | None = None
    task: str | bytes | None = None
    options: str | bytes | None = None

    @property
    def files(self) -> tuple[bytes, ...]:
        """What `audio` holds."""
        return self.audio if isinstance(self.audio, tuple) else () if self.audio is None else (self.audio,)


class Preprocessor:
    """Turns requests into prompts for the family whose checkpoint lies in `checkpoint`.

    Its `config.json` names the family (`speech_family`); CheckpointError when it does not. The codec is loaded
    with the object, so that the first request waits for nothing. device: where audio is tokenised (`cpu`, `cuda:1`, …).
    """

    def __init__(self, checkpoint: Path, codec: Codec | None = None, device: str = "cpu"):
        self.family = family_at(checkpoint)
        spoken = self.family.layout.num_codebooks
        self.codec = codec or load_codec(self.family.codec, checkpoint, device, spoken)
        self.template = open_template(self.family, checkpoint, self.codec, device)

    def prepare(self, raw: RawRequest) -> Prompt:
        """The prompt of `raw`, its seed drawn when none was asked for.

        InvalidRequest names the field, the limit and what came.
        """
        turns = read_turns(raw)
        task = choose_task(string("task", raw.task), turns, self.family)
        text = string("options", raw.options)
        spec = self.codec.spec
        options = read_options(text, self.family, task, spec.frame_rate, spec.right_frames)
        sampling = options.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(32))
        files = enumerate(raw.files)
        pieces = tuple(self._piece(turn, kind, raw, files) for turn in turns for kind in turn.kinds)
        written = self.template.write(task, pieces, options.voice)
        longest = self.family.max_model_len - 1
        if len(written.rows) > longest:
            path = "messages" if raw.messages is not None else pieces[0].path
            raise InvalidRequest(path, f"a prompt of at most {longest} rows", f"{len(written.rows)} rows")
        return Prompt(
            task.name, written.rows, sampling, written.words, options.delivery, written.audios, written.delayed_tail
        )

    def _piece(self, turn: Turn, kind: str, raw: RawRequest, files: Iterator[tuple[int, bytes]]) -> Piece:
        path = turn.where(kind)
        if kind == "text":
            return Piece(turn.role, path, text=turn.text)
        if turn.codes is not None:
            return Piece(turn.role, path, codes=turn.codes)
        return Piece(turn.role, path, pcm=self._listen(turn.audio_input, raw, files))

    def _listen(self, field: str | None, raw: RawRequest, files: Iterator[tuple[int, bytes]]) -> np.ndarray:
        """The audio of an input of `raw`, of `audio` the next of `files`, as [n] float32 at the codec's rate."""
        spec, max_s = self.codec.spec, self.family.max_audio_s
        if field == "audio":
            index, data = next(files)
            field = f"audio[{index}]" if len(raw.files) > 1 else field
            pcm, sample_rate = read_file(data, max_s, field)
        else:
            assert raw.pcm_in is not None
            check_pcm(raw.pcm_in, raw.sample_rate, max_s)
            pcm, sample_rate = raw.pcm_in, int(raw.sample_rate or 0)
        pcm = resample(pcm, sample_rate, spec.sample_rate)
        if len(pcm) < spec.samples_per_frame:
            shortest = spec.samples_per_frame / spec.sample_rate
            raise InvalidRequest(str(field), f"at least {shortest:g} s", f"{len(pcm) / spec.sample_rate:.4f} s")
        return pcm


def string(field: str, value: str | bytes | None) -> str | None:
    """`value` as text; InvalidRequest when it is not UTF-8."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, "UTF-8", f"a byte {value[error.start]:#04x} at {error.start}") from error


def read_turns(raw: RawRequest) -> tuple[Turn, ...]:
    """What the caller says: the turns of `messages`, or one turn of the user made of the other inputs."""
    given = [name for name in ("text", "audio", "pcm_in", "messages") if getattr(raw, name) is not None]
    if raw.sample_rate is not None and "pcm_in" not in given:
        raise InvalidRequest("sample_rate", "none without pcm_in", raw.sample_rate)
    if raw.messages is not None:
        turns = read_messages(string("messages", raw.messages) or "")
        expected = [*sorted({turn.audio_input for turn in turns if turn.audio_input}), "messages"]
        if given != expected:
            raise InvalidRequest("messages", f"the inputs {' and '.join(expected)}", " and ".join(given))
        _check_files(raw, sum(turn.audio_input == "audio" for turn in turns))
        return turns
    if not given:
        raise InvalidRequest("text", "at least one of text, audio, pcm_in and messages", "none")
    if raw.audio is not None and raw.pcm_in is not None:
        raise InvalidRequest("pcm_in", "either audio or pcm_in without messages", "both")
    _check_files(raw, int(raw.audio is not None))
    audio_input = "audio" if raw.audio is not None else "pcm_in" if raw.pcm_in is not None else None
    return (Turn(text=string("text", raw.text), audio_input=audio_input),)


def _check_files(raw: RawRequest, expected: int) -> None:
    if len(raw.files) != expected:
        raise InvalidRequest("audio", f"a file for each turn that means one, {expected}", f"{len(raw.files)} files")
    if expected > MAX_FILES:
        raise InvalidRequest("audio", f"at most {MAX_FILES} files", f"{expected} files")
