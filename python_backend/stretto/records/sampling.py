"""Request options: sampling per segment and reply, guidance, output format, ring and chunk sizes."""

import base64
import binascii
import secrets
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field
from typing_extensions import Doc, TypedDict

from stretto.errors import InvalidRequest
from stretto.records.json_record import JsonRecord
from stretto.streams.chunking import ChunkPolicy

FIELD = "options.output.ring"
NAME = "stretto_ring_[0-9a-f]{16}"  # clients may name no other shared memory
HANDLE_BYTES = 64


def _check_handle(text: str) -> str:
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError("no base64") from error
    if size != HANDLE_BYTES:
        raise ValueError(f"{size} bytes")
    return text


RingName = Annotated[str, Field(pattern=f"^{NAME}$", description=f"a name like {NAME}")]
CudaHandle = Annotated[str, AfterValidator(_check_handle), Field(description=f"{HANDLE_BYTES} bytes in base64")]
Device = Annotated[int, Field(ge=0, lt=1 << 31, description="the number of a GPU")]


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Name of the header's shared memory and, for slots on a GPU, IPC handle and device number."""

    name: RingName
    cuda_handle: CudaHandle | None = None
    device: Device = 0


GuidancePolicy = Literal["always", "until_s", "adaptive"]
MAX_RAS_WINDOW = 512
# Least temperature above 0: logits divided by less may overflow to infinity and become equal.
MIN_TEMPERATURE = 1e-6
MAX_UNTIL_S = 1e6
MAX_GUIDANCE_SCALE = 100.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.1, 10.0
POLICIES: tuple[GuidancePolicy, ...] = get_args(GuidancePolicy)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not _is_number(value) or not low <= value <= high:  # also rejects NaN
        raise InvalidRequest(f"options.{name}", f"a number in [{low}, {high}]", repr(value))


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise InvalidRequest(f"options.{name}", f"an integer in [{low}, {high}]", repr(value))


def _check_temperature(name: str, value: float) -> None:
    _check(name, value, 0.0, 10.0)
    if 0 < value < MIN_TEMPERATURE:
        raise InvalidRequest(f"options.{name}", f"0 or a number in [{MIN_TEMPERATURE}, 10.0]", value)


@dataclass(frozen=True, slots=True)
class CodeSampling:
    """Parameters of a draw; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    def check(self, name: str) -> None:
        """Raise InvalidRequest, naming `name`, unless every field is in its range."""
        _check_temperature(f"{name}.temperature", self.temperature)
        _check_integer(f"{name}.top_k", self.top_k, 0, 1 << 20)
        _check(f"{name}.top_p", self.top_p, 1e-6, 1.0)


@dataclass(frozen=True, slots=True)
class SegmentSampling(CodeSampling):
    """Draw parameters and length limits of one segment."""

    min_rows: int = 0
    max_rows: int = 2048

    def check(self, name: str) -> None:
        """Raise InvalidRequest, naming `name`, unless every field is in its range."""
        CodeSampling.check(self, name)
        _check_integer(f"{name}.max_rows", self.max_rows, 1, 1 << 20)
        _check_integer(f"{name}.min_rows", self.min_rows, 0, self.max_rows)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sampling parameters of one reply. `guidance_scale` 1 is unguided; `seed` is set before the engine gets it.

    Attributes:
        script_temperature: Temperature of the alignment pointer's stay-or-advance draw (0: advance if P > 1/2).
        policy: Guided frames: all, those of the first `guided_until_s` seconds of audio, or, for `adaptive`, all for
            which the engine is fast enough.
        ras_window: Window of repetition-aware sampling in rows; 0 is off.
        ras_max_repeats: Number of occurrences in the window from which on a code is drawn again, from the softmax of
            all logits without temperature, top-k and top-p. At temperature 0, too.
        min_p: Ids of stream 0 in audio less likely than this times the most likely one are dropped before top-k and
            top-p; 0 is off.
        schedule: Rows that MCTP modules generate, by name or as numbers; None for the family's default.
        repetition_penalty: Divisor of the logits of earlier ids of stream 0 (factor if negative); 1 is off. The family
            defines which ids count.
        depth: Draw parameters of a depth transformer; None for those of stream 0 in audio.
    """

    text: SegmentSampling
    audio: SegmentSampling
    guidance_scale: float = 1.0
    script_temperature: float = 1.0
    seed: int | None = None
    policy: GuidancePolicy = "always"
    guided_until_s: float | None = None
    ras_window: int = 0
    ras_max_repeats: int = 2
    min_p: float = 0.0
    schedule: str | tuple[int, ...] | None = None
    repetition_penalty: float = 1.0
    depth: CodeSampling | None = None

    @property
    def is_guided(self) -> bool:
        """True if the reply needs a CFG pair. Every other part of the server asks here."""
        return self.guidance_scale != 1.0

    def with_seed(self) -> "SamplingConfig":
        """Return the parameters with a random seed of 32 bits, which JSON keeps exact, if they have none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))

    def __post_init__(self) -> None:
        self.text.check("text")
        self.audio.check("audio")
        if self.depth is not None:
            self.depth.check("depth")
        _check("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE_SCALE)
        _check_temperature("script_temperature", self.script_temperature)
        _check_integer("audio.ras_window", self.ras_window, 0, MAX_RAS_WINDOW)
        _check_integer("audio.ras_max_repeats", self.ras_max_repeats, 1, MAX_RAS_WINDOW)
        _check("audio.min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        self._check_policy()
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, (1 << 63) - 1)

    @property
    def codes(self) -> CodeSampling:
        """Draw parameters of streams 1 and up in audio."""
        return self.audio if self.depth is None else self.depth

    def to_json(self) -> bytes:
        """Return this configuration as JSON."""
        return _JSON.write(self)

    @classmethod
    def from_json(cls, field: str, text: bytes) -> "SamplingConfig":
        """Return the configuration in `text`; raise InvalidRequest naming `field` or an option if it is invalid."""
        return _JSON.read(field, text)

    def _check_policy(self) -> None:
        until_s = self.guided_until_s
        if self.policy not in POLICIES:
            raise InvalidRequest("options.guidance.policy", f"one of {', '.join(POLICIES)}", repr(self.policy))
        if self.policy != "until_s":
            if until_s is not None:
                raise InvalidRequest("options.guidance.until_s", f"nothing under policy {self.policy!r}", until_s)
        elif until_s is None:
            raise InvalidRequest("options.guidance.until_s", "seconds, as the policy is 'until_s'", "nothing")
        elif not _is_number(until_s) or not 0.0 < until_s <= MAX_UNTIL_S:
            expected = f"seconds, more than 0 and at most {MAX_UNTIL_S:,.0f}"
            raise InvalidRequest("options.guidance.until_s", expected, repr(until_s))


_JSON: JsonRecord[SamplingConfig] = JsonRecord(SamplingConfig)


LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000
Encoding = Annotated[
    Literal["pcm_f32le", "pcm_s16le"],
    Field(description="one of pcm_f32le, pcm_s16le"),
]
SampleRate = Annotated[
    int,
    Field(ge=LOWEST_RATE, le=HIGHEST_RATE, description=f"an integer in [{LOWEST_RATE}, {HIGHEST_RATE}]"),
]


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Format of mono samples: float32 in [-1, 1] or int16, at `sample_rate` Hz (None: the codec's).

    Attributes:
        ring: Shared-memory ring that receives the samples instead of the response, for a client on this host.
        deterministic: True to decode without batching, so that no bit depends on other utterances.
    """

    encoding: Encoding = "pcm_f32le"
    sample_rate: SampleRate | None = None
    ring: RingAddress | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """Output format and chunk sizes of one utterance; `with_codes` adds the codes of all streams to the events."""

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False


MAX_PLAYOUT_S = 10
Number = Annotated[float, Field(allow_inf_nan=False, description="a number")]
Integer = Annotated[int, Field(description="an integer")]
Boolean = Annotated[bool, Field(description="true or false")]
Playout = Annotated[float, Field(ge=0, le=MAX_PLAYOUT_S, description=f"a number in [0, {MAX_PLAYOUT_S}]")]
Policy = Annotated[GuidancePolicy, Field(description=f"one of {', '.join(POLICIES)}")]
Ring = Annotated[RingAddress, Field(description="an object of name, cuda_handle and device")]
String = Annotated[str, Field(description="text")]
TextMode = Annotated[Literal["whole", "streaming", "open"], Field(description="one of whole, streaming, open")]
OBJECT = Field(description="a JSON object")


class CodeOptions(TypedDict, total=False):
    """Sampling of ids."""

    temperature: Annotated[Number, Doc("Sampling temperature; 0 takes the most likely id.")]
    top_k: Annotated[Integer, Doc("Samples from this many most likely ids only; 0 is off.")]
    top_p: Annotated[Number, Doc("Samples from the most likely ids up to this probability mass only; 1 is off.")]


class SegmentOptions(CodeOptions, total=False):
    """Sampling and length of a segment, text or audio."""

    min_rows: Annotated[Integer, Doc("Rows before the segment may end.")]
    max_rows: Annotated[Integer, Doc("Rows after which the segment is ended.")]


class AudioOptions(SegmentOptions, total=False):
    """Sampling and length of the audio segment."""

    min_p: Annotated[
        Number, Doc("Drops ids of the first stream that are less likely than this times the most likely one; 0 is off.")
    ]
    ras_window: Annotated[
        Integer, Doc("Repetition-aware sampling: rows of a stream in which repeated codes are counted; 0 is off.")
    ]
    ras_max_repeats: Annotated[
        Integer, Doc("Occurrences in the window from which on a code is drawn again, from the whole softmax.")
    ]


class GuidanceOptions(TypedDict, total=False):
    """Scale and duration of classifier-free guidance."""

    scale: Annotated[Number, Doc("Guidance scale; 1 is unguided.")]
    policy: Annotated[
        Policy,
        Doc("`always`; `until_s`, for the first seconds only; `adaptive`, while steps keep up with the frame rate."),
    ]
    until_s: Annotated[Number, Doc("Seconds of audio that are guided, for the policy `until_s`.")]


class OutputOptions(TypedDict, total=False):
    """Form and destination of the samples."""

    encoding: Annotated[Encoding, Doc("Sample format: float32 in the tensor `pcm`, or int16 in the tensor `pcm16`.")]
    sample_rate: Annotated[SampleRate, Doc("Rate in Hz to which the samples are converted; by default the codec's.")]
    ring: Annotated[Ring, Doc("Ring in shared memory for the samples, for clients on the server's host.")]
    codes: Annotated[Boolean, Doc("Adds the codes of all streams to the events.")]


class ChunkingOptions(TypedDict, total=False):
    """Sizes of the chunks in which audio is sent."""

    first_frames: Annotated[Integer, Doc("Fewest frames in the first chunk.")]
    steady_frames: Annotated[Integer, Doc("Most frames in a chunk.")]
    playout_s: Annotated[Playout, Doc("Seconds of audio that the player buffers before it starts.")]
    deterministic: Annotated[Boolean, Doc("Equal seeds give equal chunks and equal bytes.")]


class OptionsRecord(TypedDict, total=False):
    """Options of a request. The family and the task decide what is left out."""

    seed: Annotated[Integer, Doc("Seed of the noise: the same seed gives the same codes. Random by default.")]
    adapter: Annotated[String, Doc("Name of a LoRA adapter in `engine.json`; none by default.")]
    voice: Annotated[Any, Doc("Name of a voice of the model.")]
    language: Annotated[
        Any,
        Doc("Language of the text, by a name that the model lists or `auto`. The bundled voices accept English only."),
    ]
    transliterate: Annotated[
        Boolean,
        Doc("Bundled model: spell letters that the voice does not read in Latin ones instead of refusing them."),
    ]
    instruct: Annotated[String, Doc("How to speak, or the scene, in words.")]
    text_mode: Annotated[
        TextMode,
        Doc("Models that read streamed text: read it before the frames, beside them, or beside them as it is written."),
    ]
    max_audio_s: Annotated[Number, Doc("Longest reply in seconds.")]
    text: Annotated[SegmentOptions, OBJECT, Doc("Sampling of the text segment.")]
    audio: Annotated[AudioOptions, OBJECT, Doc("Sampling of the audio segment.")]
    depth: Annotated[
        CodeOptions,
        OBJECT,
        Doc("Sampling of a depth transformer's codes; what is left out is as for the first stream."),
    ]
    temperature: Annotated[Number, Doc("Sampling temperature of the task's last segment.")]
    top_k: Annotated[Integer, Doc("`top_k` of the task's last segment.")]
    top_p: Annotated[Number, Doc("`top_p` of the task's last segment.")]
    guidance_scale: Annotated[Number, Doc("Short for `guidance.scale`.")]
    guidance: Annotated[GuidanceOptions, OBJECT, Doc("Classifier-free guidance.")]
    script_temperature: Annotated[Number, Doc("Bundled model: temperature of the alignment pointer.")]
    repetition_penalty: Annotated[
        Number,
        Doc(
            "Makes ids less likely that the reply (for some models also the prompt) contains: from 0.1 to 10; 1 is off."
            " The model's family decides the default."
        ),
    ]
    schedule: Annotated[
        Any,
        Doc(
            "Models with multi-token prediction: ids per forward pass, as the name of a schedule or numbers such as"
            " `[1, 10, 4, 10]`."
        ),
    ]
    output: Annotated[OutputOptions, OBJECT, Doc("Form and destination of the samples.")]
    chunking: Annotated[ChunkingOptions, OBJECT, Doc("Sizes of the chunks in which audio is sent.")]


OPTIONS: JsonRecord[OptionsRecord] = JsonRecord(Annotated[OptionsRecord, OBJECT])
