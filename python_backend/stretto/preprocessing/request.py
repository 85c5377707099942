"""Inputs and options of a request, and their conversion to a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec, load_codec, use_whole_float32
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Task
from stretto.family.encoded_voices import EncodedFiles, stored_in
from stretto.family.encoding_turns import EncodingTurns
from stretto.family.plugin import family_at
from stretto.family.prompting import (
    Piece,
    PromptRows,
    Turn,
    choose_task,
    given_codes,
    read_messages,
    template_opener,
)
from stretto.family.pronunciations import SourceWords, server_dictionary
from stretto.family.served import served_family, speaking_folder
from stretto.family.text import check_text
from stretto.preprocessing.audio import (
    MAX_FILES,
    MAX_REQUEST_BYTES,
    AudioReader,
    Recording,
    check_voices,
    read_recording,
    resample,
)
from stretto.preprocessing.decoders import READABLE
from stretto.preprocessing.file_size import check_file_size
from stretto.preprocessing.hearing import begin_session
from stretto.preprocessing.images import MAX_REQUEST_PIXELS
from stretto.preprocessing.images import READABLE as READABLE_IMAGES
from stretto.preprocessing.options import MAX_OPTIONS_BYTES, read_delivery, read_options
from stretto.records.chunk import ALIGNED_RATE, MAX_ALIGNED_S, Alignment
from stretto.records.json_record import read_json, string
from stretto.records.prompt import MAX_PART_CHARS, Prompt, SourceWord, TextPart, read_session
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import Segment
from stretto_contract.pronunciation import Dictionary, Pronouncer, Replacement
from stretto_contract.schema import ChunkingOptions
from stretto_contract.spoken_units import pauses_s


@dataclass(frozen=True, slots=True)
class RawRequest:
    """Inputs of the ensemble; None for absent ones. Strings may be UTF-8 bytes.

    Attributes:
        text: Text of a single user turn.
        audio: Contents of an audio file (`audio.READABLE`), or of one file per turn of `messages` with "audio".
        pcm_in: Mono samples at `sample_rate`, float32 [n].
        sample_rate: Sample rate of `pcm_in` in Hz.
        messages: Conversation as JSON.
        options: Options as JSON.
        image: Contents of one image file per turn of `messages` with "image".
        session: Session and part number as JSON, for a request that continues the streamed text of an earlier one.
        field_names: Names to use in error messages instead of the fields' own.
    """

    text: str | bytes | None = None
    audio: bytes | tuple[bytes | memoryview, ...] | None = None
    pcm_in: np.ndarray | None = None
    sample_rate: int | None = None
    messages: str | bytes | None = None
    task: str | bytes | None = None
    options: str | bytes | None = None
    session: str | bytes | None = None
    image: tuple[bytes | memoryview, ...] | None = None
    field_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[bytes | memoryview, ...]:
        """Contents of the files in `audio`."""
        if isinstance(self.audio, tuple):
            return self.audio
        return () if self.audio is None else (self.audio,)

    def num_audio_bytes(self) -> int:
        """Return the size of all audio and images; raise InvalidRequest if a file, or the total, is too large."""
        for index, data in enumerate(self.files):
            check_file_size(len(data), self.file_field(index), READABLE)
        images = self.image or ()
        for index, data in enumerate(images):
            check_file_size(len(data), self.image_field(index), READABLE_IMAGES)
        total = sum(map(len, (*self.files, *images))) + (0 if self.pcm_in is None else self.pcm_in.nbytes)
        if total > MAX_REQUEST_BYTES:
            name = "image" if images else self.field_names.get("pcm_in", "pcm_in")
            name = "audio" if self.files else name
            expected = f"at most {MAX_REQUEST_BYTES} bytes of audio and images in a request"
            raise InvalidRequest(name, expected, f"{total} bytes")
        return total

    def kept(self) -> "RawRequest":
        """Return a request that owns its memory. Only `pcm_in` is copied; files are already owned."""
        return self if self.pcm_in is None else replace(self, pcm_in=self.pcm_in.copy())

    def file_field(self, index: int) -> str:
        """Return the name of file number `index` of `audio` in error messages."""
        return f"audio[{index}]" if len(self.files) > 1 else "audio"

    def image_field(self, index: int) -> str:
        """Return the name of file number `index` of `image` in error messages."""
        return f"image[{index}]" if len(self.image or ()) > 1 else "image"


class Preprocessor:
    """Converter of requests to prompts for one checkpoint.

    Attributes:
        family: The checkpoint's family. If a speaker generates the frames, they are its frames.
    """

    def __init__(
        self,
        checkpoint: Path,
        codec: Codec | None = None,
        device: str = "cpu",
        has_aligner: bool = False,
        encodings: Path | None = None,
        chunking: ChunkingOptions | None = None,
        pronunciations: Path | None = None,
    ):
        """Load the template and the codec, so that the first request is not delayed.

        Args:
            checkpoint: Folder of the checkpoint; its `config.json` names the family (`speech_family`).
            codec: None for the checkpoint's codec.
            device: torch device for audio encoding (`cpu`, `cuda:1`, …).
            encodings: Folder in which encodings of reused voices are stored; None not to store them.
            chunking: Default chunk sizes of this server; None for the family's.
            pronunciations: File of this server's pronunciation dictionary.

        Raises:
            CheckpointError: The family is missing, unknown, or not served, or the dictionary is invalid.
            InvalidRequest: A chunk size is outside its limits.
        """
        self.family = served_family(checkpoint)
        self._has_aligner = has_aligner
        open_template = template_opener(self.family)
        use_whole_float32()
        folder = speaking_folder(checkpoint)
        self.codec = codec or load_codec(self.family.codec, folder, device, self.family.num_codebooks or None)
        self._chunking = chunking or {}
        read_delivery({}, self.family, self.codec.spec.frame_rate, 0, chunking=self._chunking)  # checks the chunk sizes
        files = None if encodings is None else EncodedFiles.of_checkpoint(encodings, checkpoint, device)
        with stored_in(files):
            self.template = open_template(family_at(checkpoint), checkpoint, self.codec, device)
        self._encoding = EncodingTurns()
        self._dictionary = server_dictionary(pronunciations, self.family)

    def prepare(self, raw: RawRequest, read: AudioReader = read_recording) -> Prompt:
        """Convert a request to a prompt, with a random seed if the request has none.

        This method is thread-safe. Audio is encoded by one thread at a time, in chunks if it is long (`pass_turn`).
        Text-only requests do not wait for it.
        """
        try:
            return self._prepare(raw, read)
        except InvalidRequest as error:
            name = raw.field_names.get(error.field, error.field)
            raise InvalidRequest(name, error.expected, error.got) from error

    def _prepare(self, raw: RawRequest, read: AudioReader) -> Prompt:
        is_live = _is_live(raw)
        turns = read_turns(raw, is_live)
        task = choose_task(string("task", raw.task), turns, self.family)
        spec = self.codec.spec
        codec = (spec.frame_rate, spec.right_frames, spec.blocks)
        options = read_options(string("options", raw.options), self.family, task, *codec, self._chunking)
        as_written = turns[-1].text or ""
        changes = list[Replacement]()
        if task.reads_aloud and not options.manner.is_open:
            turns, changes = self._pronounced(turns, options.spellings)
        if options.names_voice and turns[0].role == "system" and "audio" in turns[0].kinds:
            expected = "no value, because the request contains a recording of the voice"
            raise InvalidRequest("options.voice", expected, shown(options.voice))
        sampling = options.sampling.with_seed()
        if spec.max_frames is not None and sampling.audio.max_rows > spec.max_frames * self.family.rows_per_frame:
            longest = spec.max_frames * self.family.rows_per_frame
            expected = f"at most {longest} rows, the most that {spec.name} decodes in one piece"
            raise InvalidRequest("options.audio.max_rows", expected, f"{sampling.audio.max_rows} rows")
        files = enumerate(raw.files)
        images = enumerate(raw.image or ())
        spoken = turns[:-1] if is_live else turns
        read_in_turn = (self._piece(turn, medium, raw, files, images, read) for turn in spoken for medium in turn.kinds)
        pieces = tuple(within_pixels(read_in_turn))
        check_voices({piece.path: piece.pcm for piece in pieces if piece.role in task.voice_roles}, self._encoder_rate)
        is_heard = any(piece.pcm is not None or piece.pixels is not None for piece in pieces)
        with self._encoding.turn() if is_heard else nullcontext():
            request = (task, pieces, options.voice)
            manner = replace(options.manner, seed=sampling.seed or 0)
            written = begin_session(self.template, *request) if is_live else self.template.write(*request, manner)
        alignment = None
        if options.aligns_words:
            # The aligner compares the text as written, so that words and places are those of the request. The spelling
            # of a few words hardly changes the times.
            text = as_written if written.spoken is None else written.spoken
            if written.spoken and (offset := (turns[-1].text or "").find(written.spoken)) >= 0:
                piece = SourceWord(written.spoken, offset, offset + len(written.spoken))
                text = SourceWords().read([piece], changes)[0].word
            alignment = self._alignment(task, text, pieces, options.manner.is_open)
            if alignment is not None and written.spoken is not None:
                alignment = replace(alignment, is_piece=True)
        num_silent = written.num_silent_frames if options.drops_silence else 0
        chunking = replace(options.delivery.chunking, silent_frames=num_silent)
        frames = tuple(frame and frame + num_silent for frame in sampling.redraw_from)  # in the audio that is sent
        sampling = replace(sampling, redraw_from=frames)
        limited = self._within_rate(written.limited(sampling), task, pieces)
        if not options.has_length and not options.manner.is_open and written.max_rows is None:
            spoken_text = written.spoken or turns[-1].text or ""
            limited = self._within_ceiling(limited, task, spoken_text, written)
        longest = self.family.max_model_len - 1
        if len(written.rows) > longest:
            path = "messages" if raw.messages is not None else pieces[0].path
            raise InvalidRequest(path, f"a prompt of at most {longest} rows", f"{len(written.rows)} rows")
        return Prompt(
            task.name,
            written.rows,
            limited,
            written.words,
            replace(options.delivery, chunking=chunking),
            written.audios,
            written.delayed_tail,
            written.track,
            is_open=options.manner.is_open or is_live,
            num_reference_rows=written.num_reference_rows,
            opening=(pieces[-1].text or "") if options.manner.is_open else "",
            adapter=options.adapter,
            voice=written.voice,
            input_audio_s=sum(len(piece.pcm) for piece in pieces if piece.pcm is not None) / self._encoder_rate,
            alignment=alignment,
            sound=written.sound,
            condition=written.condition,
            num_pieces=written.num_pieces,
            sources=SourceWords().read(written.sources, changes),
            spellings=dict(options.spellings) if options.manner.is_open else {},
            has_empty_reply=written.has_empty_reply,
            images=written.images,
            has_ceiling=task.reads_aloud and limited.max_rows != sampling.max_rows,
            pauses_s=pauses_s(turns[-1].text or "") if task.reads_aloud else 0.0,
            beginning=options.manner.beginning,
        )

    def _within_rate(self, sampling: SamplingConfig, task: Task, pieces: tuple[Piece, ...]) -> SamplingConfig:
        """Limit a transcription's text by the duration of its recording.

        Families that read the recording's codes row by row end with the recording anyway.
        """
        if not task.writes_down or self.family.code_track is not None:
            return sampling
        recording = pieces[-1]
        if recording.codes is not None:
            return within_rate(sampling, task, recording.codes.shape[1] / self.codec.spec.frame_rate)
        assert recording.pcm is not None
        return within_rate(sampling, task, len(recording.pcm) / self._encoder_rate)

    def _within_ceiling(self, sampling: SamplingConfig, task: Task, text: str, written: PromptRows) -> SamplingConfig:
        """Limit a reply that reads a text aloud to the maximum length of speech for this text."""
        if not task.reads_aloud:
            return sampling
        num_frames = task.speech_limits.max_frames(text, self.codec.spec.frame_rate)
        num_rows = self.family.num_audio_rows(num_frames) + len(written.track)  # which may have rows of its own
        if not task.has_audio_segment:  # text and codes take turns
            return replace(sampling, text=sampling.text.within(num_rows + len(text)))
        return replace(sampling, audio=sampling.audio.within(num_rows))

    def _pronounced(
        self, turns: tuple[Turn, ...], spellings: Mapping[str, str]
    ) -> tuple[tuple[Turn, ...], list[Replacement]]:
        """Return the turns with words of the last text replaced, and the changes; earlier texts are not spoken.

        The request's spellings take precedence over the server's dictionary.
        """
        dictionaries = tuple(filter(None, (Dictionary(spellings), self._dictionary)))
        text = turns[-1].text
        # A text that is too long is refused unchanged, because replacing words in it could take any amount of time.
        if not dictionaries or not text or len(text) > self.family.max_text_chars:
            return turns, []
        spoken, changes, _ = Pronouncer(dictionaries).after(text)
        return (*turns[:-1], replace(turns[-1], text=spoken)), changes

    def _alignment(self, task: Task, text: str, pieces: tuple[Piece, ...], is_open: bool) -> Alignment | None:
        """Return the alignment to request for `text`, which the reply speaks; None if the family reports word times."""
        field = "options.words"
        got = "'aligned'"
        if self.family.times_words(task):
            return None
        if not self._has_aligner:
            raise InvalidRequest(field, "no value (this server has no aligner)", got)
        if task.speaks:
            if is_open:  # the last chunk contains the text (`Chunk.written`)
                return Alignment()
            generates_text = {Segment.TEXT, Segment.INTERLEAVED} & set(task.segments)
            return Alignment("" if generates_text else text)
        heard = [piece.pcm for piece in pieces if piece.pcm is not None]
        if task.name != TRANSCRIBE or len(heard) != 1:
            expected = f"no value (only speech and {TRANSCRIBE!r} of one recording have word times)"
            raise InvalidRequest(field, expected, got)
        seconds = len(heard[0]) / self._encoder_rate
        if seconds > MAX_ALIGNED_S:
            raise InvalidRequest(field, f"a recording of at most {MAX_ALIGNED_S} s", f"{seconds:.1f} s")
        pcm = resample(heard[0], self._encoder_rate, ALIGNED_RATE)[: MAX_ALIGNED_S * ALIGNED_RATE]
        return Alignment(recording=np.rint(np.clip(pcm, -1, 1) * FULL_SCALE).astype(np.int16).tobytes())

    def _piece(
        self,
        turn: Turn,
        medium: str,
        raw: RawRequest,
        files: Iterator[tuple[int, bytes | memoryview]],
        images: Iterator[tuple[int, bytes | memoryview]],
        read: AudioReader,
    ) -> Piece:
        path = turn.where(medium)
        if medium == "image":
            index, data = next(images)
            seen = Recording(raw.image_field(index), data, is_image=True)
            return Piece(turn.role, path, pixels=read(seen, 0.0, 0))
        if medium == "text":
            return Piece(turn.role, path, text=turn.text)
        if turn.coded_as is not None:
            return Piece(turn.role, path, codes=given_codes(turn, self.family))
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
        rate = self._encoder_rate
        shortest = 1 / self.codec.spec.frame_rate
        pcm = read(recording, self.family.max_audio_s, rate)
        if len(pcm) < rate * shortest:
            raise InvalidRequest(recording.field, f"at least {shortest:g} s", f"{len(pcm) / rate:.4f} s")
        return pcm


def within_rate(sampling: SamplingConfig, task: Task, seconds: float) -> SamplingConfig:
    """Return `sampling` with the length of the text limited by the duration of a recording (`Task.text_rate`)."""
    return replace(sampling, text=sampling.text.within(task.text_rate.max_rows(seconds)))


def _is_live(raw: RawRequest) -> bool:
    text = string("options", raw.options) or ""
    record = read_json("options", text, MAX_OPTIONS_BYTES) if '"live"' in text else None
    return isinstance(record, dict) and record.get("live") is True


def read_turns(raw: RawRequest, is_live: bool = False) -> tuple[Turn, ...]:
    """Return the turns in `messages`, or else a single user turn with the other inputs.

    In a live session, the last turn represents the audio that follows in parts.
    """
    live = (Turn(audio_input="pcm_in"),) if is_live else ()
    inputs = [name for name in ("text", "audio", "image", "pcm_in", "messages") if getattr(raw, name) is not None]
    if raw.sample_rate is not None and "pcm_in" not in inputs:
        raise InvalidRequest("sample_rate", "no value without pcm_in", raw.sample_rate)
    if raw.messages is not None:
        turns = read_messages(string("messages", raw.messages) or "")
        needed = {turn.audio_input for turn in turns} | {"image" for turn in turns if turn.has_image}
        expected = [*sorted(name for name in needed if name is not None), "messages"]
        if inputs != expected:
            raise InvalidRequest("messages", f"the inputs {' and '.join(expected)}", " and ".join(inputs))
        _check_files("audio", raw.files, sum(turn.audio_input == "audio" for turn in turns))
        _check_files("image", raw.image or (), sum(turn.has_image for turn in turns))
        return turns + live
    if raw.image is not None:
        raise InvalidRequest("image", "no value without messages", f"{len(raw.image)} files")
    if live:
        if inputs:
            raise InvalidRequest(inputs[0], "no value with options.live (audio follows in parts)", "a value")
        return live
    if not inputs:
        raise InvalidRequest("text", "at least one of text, audio, pcm_in and messages", "none")
    if raw.audio is not None and raw.pcm_in is not None:
        raise InvalidRequest("pcm_in", "either audio or pcm_in, because there are no messages", "both")
    _check_files("audio", raw.files, int(raw.audio is not None))
    audio_input = None if raw.pcm_in is None else "pcm_in"
    if raw.audio is not None:
        audio_input = "audio"
    return (Turn(text=string("text", raw.text), audio_input=audio_input),)


def within_pixels(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield pieces; raise InvalidRequest before the next one if their images have too many pixels in all."""
    num_pixels = 0
    for piece in pieces:
        num_pixels += 0 if piece.pixels is None else piece.pixels.shape[0] * piece.pixels.shape[1]
        if num_pixels > MAX_REQUEST_PIXELS:
            expected = f"at most {MAX_REQUEST_PIXELS} pixels in all images"
            raise InvalidRequest(piece.path, expected, f"{num_pixels} pixels")
        yield piece


def _check_files(name: str, files: Sequence[bytes | memoryview], expected: int) -> None:
    if len(files) != expected:
        raise InvalidRequest(name, f"one file per turn with {name}, {expected}", f"{len(files)} files")
    if expected > MAX_FILES:
        raise InvalidRequest(name, f"at most {MAX_FILES} files", f"{expected} files")


def read_part(raw: RawRequest) -> TextPart:
    """Return the part of streamed text in a request; raise InvalidRequest if an input is invalid."""
    session = read_session(raw, ("audio", "pcm_in", "sample_rate", "messages", "task", "options"))
    text = string("text", raw.text)
    if text is None:
        raise InvalidRequest("text", "the next part of the text, or '' to add none", "none")
    check_text(text, "text", MAX_PART_CHARS)
    return TextPart(session["id"], session["part"], text, session["is_last"])


# name of the task that transcribes a recording; largest int16
TRANSCRIBE = "asr"
FULL_SCALE = 32_767
