"""Interface of prompt templates: conversations, the choice of a task, speaking options, and writing rows of ids."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Protocol

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import ROLES, Family, Role, Task
from stretto.family.plugin import plugin
from stretto.records.chunk import Sound
from stretto.records.json_record import JsonRecord, read_json
from stretto.records.prompt import Condition, InputAudio, InputImage, SourceWord
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import StreamLayout, delay_codes, words_of
from stretto_contract.schema import OptionsRecord, expected_voices

if TYPE_CHECKING:
    from stretto.codecs.base import Codec

MAX_BYTES = 1 << 20  # 30 s of codes take 80 kB
MAX_TURNS = 64
MAX_STREAMS = 33
MAX_CODE = 1 << 20
MAX_LATENT = 1e4  # magnitude

Code = Annotated[int, Field(ge=0, le=MAX_CODE, description=f"an integer in [0, {MAX_CODE}]")]
Codes = Annotated[list[Code], Field(min_length=1, fail_fast=True, description="a list of at least one code")]
Streams = Annotated[
    list[Codes],
    Field(min_length=1, max_length=MAX_STREAMS, description=f"1 to {MAX_STREAMS} lists of codes, one for each stream"),
]


class TurnRecord(TypedDict):
    """JSON form of a turn."""

    role: Annotated[Role, Field(description=f"one of {', '.join(ROLES)}")]
    text: NotRequired[Annotated[str, Field(description="a string")]]
    audio: NotRequired[Annotated[Literal["audio", "pcm_in"], Field(description="one of audio, pcm_in")]]
    image: NotRequired[Annotated[Literal["image"], Field(description="image, the input with the file")]]
    codes: NotRequired[Streams]
    latents: NotRequired[Annotated[str, Field(description="base64 of float32 [D, T]")]]


_JSON: JsonRecord[list[TurnRecord]] = JsonRecord(
    Annotated[
        list[Annotated[TurnRecord, Field(description="a JSON object with role and text, image or audio")]],
        Field(min_length=1, max_length=MAX_TURNS, description=f"a JSON list of 1 to {MAX_TURNS} turns"),
    ]
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: text, audio, an image, or several of them.

    Attributes:
        codes: Audio as codes, int64 [S, T], or None.
        latents: Audio as the elements of latents [D, T], float32 [D · T], or None.
        has_image: True if the turn has an image, in the input tensor `image`.
        path: JSON path of the turn in the request; empty if the request has no JSON turns.
    """

    role: Role = "user"
    text: str | None = None
    audio_input: str | None = None
    codes: np.ndarray | None = field(default=None, compare=False)
    latents: np.ndarray | None = field(default=None, compare=False)
    path: str = field(default="", compare=False)
    has_image: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Types of content in the turn, in prompt order: `image`, `audio` and `text`."""
        held = ("image",) * self.has_image + ("audio",) * (self.audio_input is not None or self.coded_as is not None)
        text = ("text",) * (self.text is not None)
        return text + held if self.role == "assistant" else held + text

    @property
    def coded_as(self) -> str | None:
        """`codes` or `latents` if the turn's audio is given in that form, otherwise None."""
        if self.codes is not None:
            return "codes"
        return "latents" if self.latents is not None else None

    def where(self, medium: str) -> str:
        """Return the name of the turn's text or audio (`medium`) for error messages."""
        if medium == "image":
            return f"{self.path}.image"
        if self.path:
            return f"{self.path}.{(self.coded_as if medium == 'audio' else None) or medium}"
        return medium if medium == "text" else self.audio_input or medium


def read_messages(text: str) -> tuple[Turn, ...]:
    """Parse JSON into one or more turns; raise InvalidRequest if it is invalid."""
    read_json("messages", text, MAX_BYTES)
    records = _JSON.read("messages", text.encode(errors="surrogatepass"))
    turns = tuple(_turn(record, f"messages[{index}]") for index, record in enumerate(records))
    _check_inputs(turns)
    for turn in turns[1:]:
        if turn.role == "system":
            raise InvalidRequest(
                f"{turn.path}.role", "user or assistant (only the first turn can be a system turn)", "'system'"
            )
    return turns


def _check_inputs(turns: tuple[Turn, ...]) -> None:
    sampled = [turn for turn in turns if turn.audio_input == "pcm_in"]
    if len(sampled) > 1:
        expected = "'pcm_in' in one turn only, and 'audio' in the others"
        raise InvalidRequest(sampled[1].where("audio"), expected, "a second 'pcm_in'")


def _turn(record: TurnRecord, path: str) -> Turn:
    if len(record) < 2 or len({"audio", "codes", "latents"} & record.keys()) > 1:
        expected = "role, and at least one of text, image and audio (or codes or latents)"
        raise InvalidRequest(path, expected, shown(sorted(record)))
    codes = None if "codes" not in record else _codes(record["codes"], f"{path}.codes")
    latents = None if "latents" not in record else _latents(record["latents"], f"{path}.latents")
    fields = record["role"], record.get("text"), record.get("audio"), codes, latents, path
    return Turn(*fields, has_image="image" in record)


def _codes(streams: list[list[int]], path: str) -> np.ndarray:
    """Convert S lists of T codes to int64 [S, T]; the family checks their values later."""
    lengths = [len(stream) for stream in streams]
    if len(set(lengths)) > 1:
        raise InvalidRequest(path, "the same number of codes for each stream", shown(lengths))
    return np.array(streams, np.int64)


def _latents(text: str, path: str) -> np.ndarray:
    """Decode base64 of little-endian float32 numbers to elements [n]."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidRequest(path, "base64 of float32 [D, T]", shown(text)) from error
    if not data or len(data) % 4:
        raise InvalidRequest(path, "base64 of float32 [D, T]", f"{len(data)} bytes")
    return np.frombuffer(data, "<f4")


def given_codes(turn: Turn, family: Family) -> np.ndarray:
    """Return a turn's codes [S, T] or words of latents, int32 [D, T]; raise InvalidRequest if they do not fit."""
    path = turn.where("audio")
    spec = family.layout.latents
    form = "codes" if spec is None else "latents"
    if turn.coded_as != form:
        raise InvalidRequest(path, f"audio or {form} (frames of this model are {form})", turn.coded_as)
    if spec is None or turn.latents is None:
        assert turn.codes is not None
        return turn.codes
    elements = turn.latents
    width = family.latent_size
    if len(elements) % width:
        raise InvalidRequest(path, f"base64 of float32 [{width}, T]", f"{len(elements)} elements")
    if not (np.abs(elements) <= MAX_LATENT).all():
        raise InvalidRequest(path, f"finite numbers of magnitude {MAX_LATENT:g} at most", "others")
    seconds = len(elements) / width / family.frame_rate
    if seconds > family.max_audio_s:
        raise InvalidRequest(path, f"at most {family.max_audio_s:g} s", f"{seconds:.2f} s")
    return words_of(elements.reshape(width, -1))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One text or recording in a conversation.

    Attributes:
        path: Name of the text or recording in error messages.
        pcm: Mono samples, float32 [n] at the sample rate of the audio encoder, or None.
        codes: Audio as codes, [S, T], or as words of latents, int32 [D, T]; None if there is neither.
        pixels: Image, uint8 [height, width, 3], or None.
    """

    role: Role
    path: str
    text: str | None = None
    pcm: np.ndarray | None = None
    codes: np.ndarray | None = None
    pixels: np.ndarray | None = None


def choose_task(name: str | None, turns: tuple[Turn, ...], family: Family) -> Task:
    """Return the named task or, if no name is given, the family's first task that accepts `turns`.

    Raises:
        InvalidRequest: If no such task accepts the turns. The message is about the first task that accepts turns with
            these roles, or otherwise about the first task.
    """
    named = [task for task in family.tasks if name in (None, task.name)]
    if not named:
        raise InvalidRequest("task", f"one of {', '.join(task.name for task in family.tasks)}", shown(name))
    refusals = []
    for task in named:
        try:
            check(turns, task)
            return task
        except InvalidRequest as refusal:
            refusals.append(refusal)
    raise min(refusals, key=lambda refusal: refusal.field.endswith(".role"))


def check(turns: tuple[Turn, ...], task: Task) -> None:
    """Raise InvalidRequest unless `task` accepts the conversation."""
    spoken = turns
    if "image" not in (*task.needs, *task.also):
        for turn in turns:
            if turn.has_image:  # also in turns that are already answered
                raise InvalidRequest(turn.where("image"), f"no image for task {task.name!r}", "an image")
    if turns[0].role == "system" and task.system:
        _check_kinds(turns[0], set(turns[0].kinds), (), task.system, task)
        spoken = turns[1:]
    last = turns[-1]
    if last.role != task.answers:
        expected = f"{task.answers!r} in the last turn for task {task.name!r}"
        raise InvalidRequest(f"{last.path}.role" if last.path else "messages", expected, repr(last.role))
    roles = ("user", "assistant") if task.has_history else (task.answers,)
    for turn in spoken:
        if turn.role not in roles:
            expected = f"{' or '.join(map(repr, roles))} for task {task.name!r}"
            if turn.role == "system" and "audio" in turn.kinds:
                expected += ", which takes no recording of a voice"
            raise InvalidRequest(f"{turn.path}.role", expected, repr(turn.role))
    _check_answered(spoken, task)


def _check_answered(spoken: tuple[Turn, ...], task: Task) -> None:
    """Check the input of `task`: the last consecutive turns with the role that the task answers."""
    first = len(spoken)
    while first and spoken[first - 1].role == task.answers:
        first -= 1
    kinds = [medium for turn in spoken[first:] for medium in turn.kinds]
    if not task.has_history and len(set(kinds)) < len(kinds):
        expected = f"at most one text and one audio for task {task.name!r}"
        raise InvalidRequest(spoken[-1].path, expected, " and ".join(kinds))
    _check_kinds(spoken[-1], set(kinds), task.needs, task.also, task)


def _check_kinds(turn: Turn, kinds: set[str], needs: tuple[str, ...], also: tuple[str, ...], task: Task) -> None:
    got = " and ".join(sorted(kinds))
    missing = [medium for medium in needs if medium not in kinds]
    if missing:
        raise InvalidRequest(turn.path or missing[0], f"{' and '.join(needs)} for task {task.name!r}", got)
    excess = sorted(kinds - {*needs, *also})
    if excess:
        expected = f"only {' and '.join(needs or also)} for task {task.name!r}"
        raise InvalidRequest(turn.path or turn.where(excess[0]), expected, got)


@dataclass(frozen=True, slots=True)
class Manner:
    """Speaking options other than the voice.

    Attributes:
        language: Name of the language; None to let the model choose.
        instruct: Instructions on the speaking style; empty for none.
        is_streaming: True if the text is read during the reply (streamed text input); False if the prompt contains the
            whole text.
        is_open: True if later requests may continue this text.
        transliterates: True to transliterate scripts that the model cannot read to Latin.
        exaggeration: Strength of the voice's emotion; None for the voice's default.
        guidance_scale: One of `Family.guidance_scales`; None for the default, and in families without them.
        piece: Number of the text's piece to speak, from 0; None for a text that has only one.
        seed: Seed of the noise that is added to a recording, in families that add it.
        beginning: Beginning of the reply's text, which the reply continues; None for none.
    """

    language: str | None = None
    instruct: str = ""
    is_streaming: bool = False
    is_open: bool = False
    transliterates: bool = False
    exaggeration: float | None = None
    guidance_scale: float | None = None
    piece: int | None = None
    seed: int = 0
    beginning: str | None = None


PLAIN = Manner()


def read_manner(options: OptionsRecord, family: Family) -> Manner:
    """Return the speaking options of a request; raise InvalidRequest if the family does not support one."""
    return Manner(
        language=family.languages.choose(options.get("language")),
        instruct=_instruct(options, family),
        is_streaming=_is_streaming(options, family),
        is_open=options.get("text_mode") == "open",
        transliterates=_transliterates(options, family),
        exaggeration=_exaggeration(options, family),
        piece=_piece(options, family),
    )


def _instruct(options: OptionsRecord, family: Family) -> str:
    instruct = options.get("instruct", "")
    if instruct and "instruct" not in family.options:
        raise InvalidRequest("options.instruct", "no value (this model does not accept instructions)", shown(instruct))
    return instruct


def _transliterates(options: OptionsRecord, family: Family) -> bool:
    transliterates = options.get("transliterate", False)
    if transliterates and "transliterate" not in family.options:
        raise InvalidRequest("options.transliterate", "false or no value (this model supports every script)", "true")
    return transliterates


def _exaggeration(options: OptionsRecord, family: Family) -> float | None:
    exaggeration = options.get("exaggeration")
    if exaggeration is not None and "exaggeration" not in family.options:
        raise InvalidRequest("options.exaggeration", "no value (this model does not support it)", exaggeration)
    return exaggeration


def _piece(options: OptionsRecord, family: Family) -> int | None:
    piece = options.get("piece")
    if piece is not None and "piece" not in family.options:
        raise InvalidRequest("options.piece", "no value (this model speaks a text in one piece)", piece)
    return piece


def _is_streaming(options: OptionsRecord, family: Family) -> bool:
    if "text_mode" not in options:
        return family.text_track is not None and family.text_track.is_usual
    if family.text_track is None:
        expected = "no value (this model cannot read text while it generates frames)"
        raise InvalidRequest("options.text_mode", expected, shown(options["text_mode"]))
    return options["text_mode"] != "whole"


def read_guidance_scale(guidance: dict[str, Any], family: Family) -> float | None:
    """Remove the guidance scale from SamplingConfig fields; return it, or None; raise InvalidRequest if unsupported."""
    scale: float | None = guidance.pop("guidance_scale", None)
    if scale is not None and scale not in family.guidance_scales:
        expected = f"one of {', '.join(f'{guidance_scale:g}' for guidance_scale in family.guidance_scales)}"
        raise InvalidRequest("options.guidance_scale", expected, scale)
    return None if scale is None else float(scale)


def read_voice(options: OptionsRecord, family: Family) -> str | None:
    """Return the reply's voice in lower case, or several, separated by commas; raise InvalidRequest for others."""
    voice = options.get("voice", family.voices[0] if family.voices else None)
    if isinstance(voice, str):
        voice = voice.lower()
    names: list[Any] = [voice]
    if isinstance(voice, str) and family.max_voices > 1:
        names = [name.strip() for name in voice.split(",")]
        voice = ",".join(names)
    if "voice" in options and (len(names) > family.max_voices or any(name not in family.voices for name in names)):
        voices = expected_voices(family.voices, family.max_voices)
        expected = voices if family.voices else "no value (this model has no named voices)"
        raise InvalidRequest("options.voice", expected, shown(options["voice"]))
    return voice


def stream0_rows(layout: StreamLayout, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return rows, int32 [N, S], with `ids` on stream 0 and pads on the other streams."""
    rows = np.full((len(ids), layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, 0] = ids
    return rows


def code_rows(layout: StreamLayout, codes: np.ndarray) -> np.ndarray:
    """Return delayed rows, int32 [T + max_delay, S], with codes [K, T] as absolute ids, and pad ids elsewhere.

    row      0    1    2    3
    stream 1 c0,0 c0,1 pad  pad      delay 0
    stream 2 pad  pad  c1,0 c1,1     delay 2
    """
    num_codebooks, num_frames = codes.shape
    if num_codebooks != layout.num_codebooks or not ((codes >= 0) & (codes < layout.codebook_size)).all():
        raise ValueError(
            f"expected codes [{layout.num_codebooks}, T] in [0, {layout.codebook_size}), got shape {codes.shape}"
        )
    streams = list(layout.codebook_streams)
    first_ids = np.array([layout.audio[stream].start for stream in streams])
    delayed = delay_codes(codes + first_ids[:, None], tuple(layout.delays[stream] for stream in streams), layout.pad_id)
    rows = np.full((num_frames + layout.max_delay, layout.num_input_streams), layout.pad_id, np.int32)
    rows[: len(delayed), streams] = delayed
    return rows


def frame_rows(layout: StreamLayout, codes: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Return delayed rows, int32 [T + max_delay, S], with codes [S, T] of all output streams as absolute ids.

        row      0    1    2    3
        stream 0 c0,0 c0,1 f0   f0       delay 0
        stream 1 f1   c1,0 c1,1 f1       delay 1; fill f1 without a frame

    Args:
        fill: Id of each output stream for rows without a frame.
    """
    num_frames = codes.shape[1]
    rows = np.full((num_frames + layout.max_delay, layout.num_input_streams), layout.pad_id, np.int32)
    rows[:, : layout.num_output_streams] = fill
    for stream, delay in enumerate(layout.delays):
        rows[delay : delay + num_frames, stream] = layout.audio[stream].start + codes[stream]
    return rows


def check_codes(codes: np.ndarray, family: Family, path: str) -> None:
    """Raise InvalidRequest if codes [S, T] have the wrong number of streams, are too long or out of range."""
    layout = family.layout
    max_frames = int(family.max_audio_s * family.frame_rate)
    if len(codes) != layout.num_output_streams:
        raise InvalidRequest(path, f"{layout.num_output_streams} streams", f"{len(codes)} streams")
    if codes.shape[1] > max_frames:
        raise InvalidRequest(
            path, f"at most {max_frames} frames ({family.max_audio_s:g} s)", f"{codes.shape[1]} frames"
        )
    for stream, ids in enumerate(layout.audio):
        if codes[stream].max() >= len(ids):
            raise InvalidRequest(f"{path}[{stream}]", f"codes in [0, {len(ids)})", codes[stream].max())


def codes_of(piece: Piece, family: Family, encode: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    """Return a recording's codes, int [S, T], from the request or from its samples, or raise InvalidRequest.

    Args:
        encode: Function of samples [n] that returns their codes; None if the checkpoint has no audio tokenizer.
    """
    if piece.codes is not None:
        check_codes(piece.codes, family, piece.path)
        return piece.codes
    assert piece.pcm is not None, piece.path
    if encode is None:
        codes = f"codes [{family.layout.num_output_streams}][T] in messages"
        expected = f"{codes}, because the checkpoint has no ssl_tokenizer/ (docs/families.md, Requests)"
        raise InvalidRequest(piece.path, expected, "audio")
    return encode(piece.pcm)


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """Prompt written by a template.

    Attributes:
        rows: Absolute token ids of every input stream, with delays applied, int32 [P, S].
        words: Words to speak, for word timestamps; empty if timestamps are not supported.
        audios: Audio inputs for the encoder, which replace placeholder rows, in order.
        images: Images for the encoder, which replace placeholder rows, in order.
        max_rows: Maximum number of audio rows for this text; None if only the options limit the number.
        min_rows: Minimum number of audio rows for this text, which applies if it exceeds the minimum in the options.
        tail_rows: Number of frames from the detected end of speech, for frames that are latents; None for the default.
        num_pieces: Number of pieces of the text, of which this prompt speaks one.
        spoken: Text of this piece; None for the whole text.
        num_silent_frames: Number of frames at the start of the reply that are always silence, if it uses no adapter and
            the task's default sampling.
    """

    rows: np.ndarray
    words: tuple[str, ...] = ()
    audios: tuple[InputAudio, ...] = ()
    delayed_tail: np.ndarray | None = None
    track: tuple[int, ...] = ()
    num_reference_rows: int = 0
    voice: int = 0
    max_rows: int | None = None
    tail_rows: int | None = None
    sound: Sound | None = None
    min_rows: int = 0
    condition: Condition | None = None
    num_pieces: int = 1
    spoken: str | None = None
    sources: tuple[SourceWord, ...] = ()
    has_empty_reply: bool = False
    images: tuple[InputImage, ...] = ()
    num_silent_frames: int = 0

    def limited(self, sampling: SamplingConfig) -> SamplingConfig:
        """Return `sampling` with its numbers of rows narrowed to what this prompt permits."""
        if self.max_rows is not None or self.min_rows:
            most = min(sampling.audio.max_rows, self.max_rows or sampling.audio.max_rows)
            least = min(max(sampling.audio.min_rows, self.min_rows), most)
            sampling = replace(sampling, audio=replace(sampling.audio, min_rows=least, max_rows=most))
        if self.tail_rows is not None and sampling.latents is not None:
            sampling = replace(sampling, latents=replace(sampling.latents, tail_rows=self.tail_rows))
        return sampling


class Template(Protocol):
    """Prompt template of a family."""

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for a conversation; raise InvalidRequest if a text or recording is too long or unusable."""
        ...


def template_opener(family: Family) -> Callable[[Family, Path, "Codec", str], Template]:
    """Return the function that opens the family's prompt template; raise CheckpointError if it has none."""
    family_plugin = plugin(family.name)
    if family_plugin is None or family_plugin.open_template is None:
        reason = "has no prompts for the server; use it through SpeechLLM (docs/families.md)"
        raise CheckpointError(f"{family.name} {reason}")
    return family_plugin.open_template
