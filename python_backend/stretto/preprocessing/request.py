"""Inputs of a request, and their conversion to a prompt."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.codecs.registry import load_codec
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.conversation import Piece, Turn, choose_task, read_messages
from stretto.families.prompting import open_template
from stretto.families.registry import family_at
from stretto.families.text import check_text
from stretto.preprocessing.audio import (
    MAX_FILES,
    MAX_REQUEST_BYTES,
    AudioReader,
    Recording,
    check_file_size,
    read_recording,
)
from stretto.preprocessing.options import read_options
from stretto.records.json_record import read_json
from stretto.records.prompt import MAX_PART_CHARS, SESSION, Prompt, TextPart


@dataclass(frozen=True, slots=True)
class RawRequest:
    """Inputs of the ensemble; None for absent ones. Strings may be UTF-8 bytes.

    Attributes:
        text: Text of a single user turn.
        audio: Contents of an audio file (`audio.READABLE`), or of several, one per turn of `messages` with "audio".
        pcm_in: Mono samples at `sample_rate`, float32 [n].
        sample_rate: Sample rate of `pcm_in` in Hz.
        messages: Conversation as JSON.
        task: Name of the task.
        options: Options as JSON.
        session: Only for a request that continues the streamed text of an earlier one: session and part number as JSON.
    """

    text: str | bytes | None = None
    audio: bytes | tuple[bytes | memoryview, ...] | None = None
    pcm_in: np.ndarray | None = None
    sample_rate: int | None = None
    messages: str | bytes | None = None
    task: str | bytes | None = None
    options: str | bytes | None = None
    session: str | bytes | None = None

    @property
    def files(self) -> tuple[bytes | memoryview, ...]:
        """Contents of the files in `audio`."""
        return self.audio if isinstance(self.audio, tuple) else () if self.audio is None else (self.audio,)

    def num_audio_bytes(self) -> int:
        """Return the size of all audio in bytes; raise InvalidRequest if a file, or the total, is too large."""
        for index, data in enumerate(self.files):
            check_file_size(len(data), self.file_field(index))
        total = sum(map(len, self.files)) + (0 if self.pcm_in is None else self.pcm_in.nbytes)
        if total > MAX_REQUEST_BYTES:
            field = "audio" if self.files else "pcm_in"
            raise InvalidRequest(field, f"at most {MAX_REQUEST_BYTES} bytes of audio in a request", f"{total} bytes")
        return total

    def kept(self) -> "RawRequest":
        """Return a request that owns its memory: `pcm_in` is copied; the contents of `audio` are already owned."""
        return self if self.pcm_in is None else replace(self, pcm_in=self.pcm_in.copy())

    def file_field(self, index: int) -> str:
        """Return the name of file `index` of `audio` for error messages."""
        return f"audio[{index}]" if len(self.files) > 1 else "audio"


class Preprocessor:
    """Converter of requests to prompts for one checkpoint.

    Attributes:
        family: The checkpoint's family.
        codec: The checkpoint's codec.
        template: The family's prompt template.
    """

    def __init__(self, checkpoint: Path, codec: Codec | None = None, device: str = "cpu"):
        """Load the template and the codec, so that the first request is not delayed.

        Args:
            checkpoint: Folder of the checkpoint; its `config.json` names the family (`speech_family`).
            codec: Codec to use instead of the checkpoint's; None for the checkpoint's.
            device: torch device for audio encoding (`cpu`, `cuda:1`, …).

        Raises:
            CheckpointError: The family is missing, unknown, or not served.
        """
        self.family = family_at(checkpoint)
        if self.family.not_served:
            raise CheckpointError(f"{self.family.name} {self.family.not_served}")
        spoken = self.family.num_codebooks
        self.codec = codec or load_codec(self.family.codec, checkpoint, device, spoken)
        self.template = open_template(self.family, checkpoint, self.codec, device)
        self._tokenising = threading.Lock()

    def prepare(self, raw: RawRequest, read: AudioReader = read_recording) -> Prompt:
        """Convert a request to a prompt, with a random seed if the request has none.

        Thread-safe. Audio is encoded by one thread at a time; text-only requests do not wait for it.

        Args:
            raw: The request.
            read: Function that decodes its audio.

        Raises:
            InvalidRequest: An input is invalid; the message names the field, the limit and the value.
        """
        turns = read_turns(raw)
        task = choose_task(string("task", raw.task), turns, self.family)
        text = string("options", raw.options)
        spec = self.codec.spec
        options = read_options(text, self.family, task, spec.frame_rate, spec.right_frames, spec.blocks)
        sampling = options.sampling.with_seed()
        if spec.max_frames is not None and sampling.audio.max_rows > spec.max_frames * self.family.rows_per_frame:
            longest = spec.max_frames * self.family.rows_per_frame
            expected = f"at most {longest} rows, the most that {spec.name} decodes in one piece"
            raise InvalidRequest("options.audio.max_rows", expected, sampling.audio.max_rows)
        files = enumerate(raw.files)
        pieces = tuple(self._piece(turn, kind, raw, files, read) for turn in turns for kind in turn.kinds)
        with self._tokenising if any(piece.pcm is not None for piece in pieces) else nullcontext():
            written = self.template.write(task, pieces, options.voice, options.manner)
        longest = self.family.max_model_len - 1
        if len(written.rows) > longest:
            path = "messages" if raw.messages is not None else pieces[0].path
            raise InvalidRequest(path, f"a prompt of at most {longest} rows", f"{len(written.rows)} rows")
        return Prompt(
            task.name,
            written.rows,
            sampling,
            written.words,
            options.delivery,
            written.audios,
            written.delayed_tail,
            written.track,
            is_open=options.manner.is_open,
            num_reference_rows=written.num_reference_rows,
            opening=(pieces[-1].text or "") if options.manner.is_open else "",
            adapter=options.adapter,
            voice=written.voice,
            input_audio_s=sum(len(piece.pcm) for piece in pieces if piece.pcm is not None) / self._encoder_rate,
        )

    def _piece(
        self, turn: Turn, kind: str, raw: RawRequest, files: Iterator[tuple[int, bytes | memoryview]], read: AudioReader
    ) -> Piece:
        path = turn.where(kind)
        if kind == "text":
            return Piece(turn.role, path, text=turn.text)
        if turn.codes is not None:
            return Piece(turn.role, path, codes=turn.codes)
        if turn.audio_input == "audio":
            index, data = next(files)
            recording = Recording(raw.file_field(index), data)
        else:
            assert raw.pcm_in is not None
            recording = Recording("pcm_in", raw.pcm_in, is_file=False, sample_rate=raw.sample_rate)
        return Piece(turn.role, path, pcm=self._samples(recording, read))

    @property
    def _encoder_rate(self) -> int:
        """Sample rate of the audio encoder's input, in Hz."""
        return self.codec.spec.input_rate or self.codec.spec.sample_rate

    def _samples(self, recording: Recording, read: AudioReader) -> np.ndarray:
        """Return a recording's mono samples at the audio encoder's sample rate, float32 [n]."""
        rate, shortest = self._encoder_rate, 1 / self.codec.spec.frame_rate
        pcm = read(recording, self.family.max_audio_s, rate)
        if len(pcm) < rate * shortest:
            raise InvalidRequest(recording.field, f"at least {shortest:g} s", f"{len(pcm) / rate:.4f} s")
        return pcm


def string(field: str, value: str | bytes | None) -> str | None:
    """Decode a string input; raise InvalidRequest if it is not UTF-8."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, "UTF-8", f"a byte {value[error.start]:#04x} at {error.start}") from error


def read_turns(raw: RawRequest) -> tuple[Turn, ...]:
    """Return the turns in `messages`, or one user turn with the other inputs.

    Raise InvalidRequest if one is invalid.
    """
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
        raise InvalidRequest("audio", f"one file per turn with audio, {expected}", f"{len(raw.files)} files")
    if expected > MAX_FILES:
        raise InvalidRequest("audio", f"at most {MAX_FILES} files", f"{expected} files")


FIELD = "session"


def read_part(raw: RawRequest) -> TextPart:
    """Return the part of streamed text in a request; raise InvalidRequest if an input is invalid."""
    for name in ("audio", "pcm_in", "sample_rate", "messages", "task", "options"):
        if getattr(raw, name) is not None:
            raise InvalidRequest(name, "none with session: only the first part may set it", "some")
    record = string(FIELD, raw.session)
    assert record is not None, "checked by the caller"
    read_json(FIELD, record)
    session = SESSION.read(FIELD, record.encode(errors="surrogatepass"))
    text = string("text", raw.text)
    if text is None:
        raise InvalidRequest("text", "the next part of the text, '' if nothing is added", "nothing")
    check_text(text, "text", MAX_PART_CHARS)
    return TextPart(session["id"], session["part"], text, session["is_last"])
