"""Request options, defined once for server, gateway, client and documentation.

The server validates a request against these types with pydantic. This module does not import pydantic, so that the
client can be installed without it. It imports no other module of this package, so that the server does not load gRPC.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from typing_extensions import Doc, TypedDict

# sample rates in Hz
LOWEST_RATE = 4_000
HIGHEST_RATE = 192_000
MAX_PLAYOUT_S = 10
RING_NAME = "stretto_ring_[0-9a-f]{16}"  # the only names of shared memory that clients may use
SOCKET_SUFFIX = "_socket"  # after a ring's name: the socket that receives the descriptor of GPU memory
Memory = Literal["system", "cuda"]  # of a ring's slots
GuidancePolicy = Literal["always", "until_s", "adaptive"]
POLICIES: tuple[GuidancePolicy, ...] = get_args(GuidancePolicy)


NUMBER = "a number"
INTEGER = "an integer"


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected value of an option, as metadata in an `Annotated` type.

    Attributes:
        is_checked: False if the model family, not pydantic, validates the value.
        kind: `a number` or `an integer`, for error messages about values of other types; empty to use the description.
    """

    description: str
    ge: float | None = None
    le: float | None = None
    pattern: str | None = None
    is_checked: bool = True
    gt: float | None = None
    kind: str = ""

    def admits(self, value: object) -> bool:
        """Return True if `value` is a number of this kind within the limits; NaN is not."""
        types = (int,) if self.kind == INTEGER else (int, float)
        if not isinstance(value, types) or isinstance(value, bool):
            return False
        is_above = (self.ge is None or value >= self.ge) and (self.gt is None or value > self.gt)
        return is_above and (self.le is None or value <= self.le)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Return pydantic's schema for the value, with these limits (pydantic hook)."""
        if not self.is_checked:
            return {"type": "any"}
        schema = handler(source)
        limits: dict[str, Any] = {"ge": self.ge, "gt": self.gt, "le": self.le, "pattern": self.pattern}
        if schema["type"] == "float":
            limits["allow_inf_nan"] = False
        return schema | {name: limit for name, limit in limits.items() if limit is not None}


def number(low: float, high: float) -> Expected:
    """Return the annotation of a number from `low` to `high`."""
    return Expected(f"a number in [{low}, {high}]", ge=low, le=high, kind=NUMBER)


def integer(low: int, high: int) -> Expected:
    """Return the annotation of an integer from `low` to `high`."""
    return Expected(f"an integer in [{low}, {high}]", ge=low, le=high, kind=INTEGER)


MAX_LISTED = 12  # voices in an error message: a model may have a thousand, and long messages are truncated


def expected_voices(voices: Sequence[str], max_voices: int = 1, *aliases: str) -> str:
    """Describe valid voice names for an error message: the first MAX_LISTED, of which a reply may have `max_voices`."""
    number = "one of" if max_voices == 1 else f"one to {max_voices} of these, separated by commas:"
    others = [f"{len(voices) - MAX_LISTED} others"] if len(voices) > MAX_LISTED else []
    return f"{number} {', '.join((*voices[:MAX_LISTED], *others, *aliases))}"


Number = Annotated[float, Expected("a number")]
Integer = Annotated[int, Expected("an integer")]
# Ranges of numbers. The fields of the server's records have the same types, so that each range stands here alone. A
# family may permit less.
MOST_ROWS = 1 << 20
Temperature = Annotated[float, number(0.0, 10.0)]
TopK = Annotated[int, integer(0, 1 << 20)]
TopP = Annotated[float, number(1e-6, 1.0)]
MinP = Annotated[float, number(0.0, 1.0)]
MinRows = Annotated[int, integer(0, MOST_ROWS)]
MaxRows = Annotated[int, integer(1, MOST_ROWS)]
RasWindow = Annotated[int, integer(0, 512)]
RasMaxRepeats = Annotated[int, integer(1, 512)]
Steps = Annotated[int, integer(1, 1 << 20)]
GuidanceScale = Annotated[float, number(0.0, 100.0)]
GuidedTime = Annotated[float, Expected("a number of seconds in (0, 1000000]", gt=0.0, le=1e6, kind=NUMBER)]
RepetitionPenalty = Annotated[float, number(0.1, 10.0)]
Seed = Annotated[int, integer(0, (1 << 63) - 1)]
ResumeTime = Annotated[float, Expected("seconds in [0, 60]", ge=0, le=60, kind=NUMBER)]
Boolean = Annotated[bool, Expected("true or false")]
String = Annotated[str, Expected("text")]
Words = Annotated[Literal["aligned"], Expected("aligned")]
Playout = Annotated[float, Expected(f"a number in [0, {MAX_PLAYOUT_S}]", ge=0, le=MAX_PLAYOUT_S)]
Policy = Annotated[GuidancePolicy, Expected(f"one of {', '.join(POLICIES)}")]
Exaggeration = Annotated[float, Expected("a number in [0, 2]", ge=0, le=2)]
MAX_PIECE = 1 << 16
Piece = Annotated[int, Expected(f"an integer in [0, {MAX_PIECE}]", ge=0, le=MAX_PIECE)]
TextMode = Annotated[Literal["whole", "streaming", "open"], Expected("one of whole, streaming, open")]
Encoding = Annotated[Literal["pcm_f32le", "pcm_s16le"], Expected("one of pcm_f32le, pcm_s16le")]
SampleRate = Annotated[int, Expected(f"an integer in [{LOWEST_RATE}, {HIGHEST_RATE}]", ge=LOWEST_RATE, le=HIGHEST_RATE)]
RingName = Annotated[str, Expected(f"a name like {RING_NAME}", pattern=f"^{RING_NAME}$")]
RingMemory = Annotated[Memory, Expected(f"one of {', '.join(get_args(Memory))}")]
OBJECT = Expected("a JSON object")
BY_FAMILY = Expected("see the family", is_checked=False)
FRAMES = Expected("a list of frame numbers", is_checked=False)  # by `SamplingConfig.check`
SPELLINGS = Expected("an object of words and their spellings", is_checked=False)  # by `pronunciation.read_entries`


class CodeOptions(TypedDict, total=False):
    """Sampling options."""

    temperature: Annotated[Temperature, Doc("Sampling temperature; 0 selects the most probable id.")]
    top_k: Annotated[TopK, Doc("Number of most probable ids to sample from; 0 is off.")]
    top_p: Annotated[TopP, Doc("Probability mass of the most probable ids to sample from; 1 is off.")]


class SegmentOptions(CodeOptions, total=False):
    """Sampling and length options of a text or audio segment."""

    min_rows: Annotated[MinRows, Doc("Minimum number of rows of the segment.")]
    max_rows: Annotated[MaxRows, Doc("Maximum number of rows of the segment.")]


class AudioOptions(SegmentOptions, total=False):
    """Sampling and length options of the audio segment."""

    min_p: Annotated[
        MinP, Doc("Minimum probability of ids of the first stream, relative to the most probable id; 0 is off.")
    ]
    ras_window: Annotated[
        RasWindow, Doc("Repetition-aware sampling: number of rows in which repeated codes are counted; 0 is off.")
    ]
    ras_max_repeats: Annotated[
        RasMaxRepeats,
        Doc("Number of occurrences in the window at which a code is sampled again from the whole softmax."),
    ]


class LatentOptions(TypedDict, total=False):
    """Options of models whose frames are latents."""

    steps: Annotated[
        Steps, Doc("Solver steps per latent. More steps take more time; models with a one-step head accept only 1.")
    ]


class GuidanceOptions(TypedDict, total=False):
    """Options of classifier-free guidance: scale and duration."""

    scale: Annotated[GuidanceScale, Doc("Guidance scale; 1 is unguided. A model may take only its `guidance_scales`.")]
    policy: Annotated[
        Policy,
        Doc("`always`; `until_s`: only the first seconds; `adaptive`: while steps keep up with the frame rate."),
    ]
    until_s: Annotated[GuidedTime, Doc("Seconds of audio that are guided, for the policy `until_s`.")]


class RingHeader(TypedDict):
    """Shared-memory ring for the samples."""

    name: Annotated[RingName, Doc("Name of the shared memory with the header and, in system memory, the slots.")]


class RingOptions(RingHeader, total=False):
    """Shared-memory ring for the samples, with slots that may be on a GPU."""

    memory: Annotated[
        RingMemory,
        Doc(
            "Memory of the slots: `system` (the default), or `cuda` for memory of the decoder's GPU, whose descriptor"
            " the decoder sends to the Unix socket `/dev/shm/NAME_socket`."
        ),
    ]


class OutputOptions(TypedDict, total=False):
    """Format and destination of the samples."""

    encoding: Annotated[Encoding, Doc("Sample format: float32 in the tensor `pcm`, or int16 in the tensor `pcm16`.")]
    sample_rate: Annotated[SampleRate, Doc("Rate in Hz to which the samples are converted; by default the codec's.")]
    ring: Annotated[
        RingOptions,
        Expected("an object of name and memory"),
        Doc("Ring in shared memory for the samples, for clients on the server's host."),
    ]
    codes: Annotated[Boolean, Doc("Adds the codes of all streams to the events.")]


class ChunkingOptions(TypedDict, total=False):
    """Sizes of the chunks in which audio is sent."""

    first_frames: Annotated[Integer, Doc("Minimum number of frames in the first chunk.")]
    steady_frames: Annotated[Integer, Doc("Maximum number of frames in a chunk.")]
    playout_s: Annotated[Playout, Doc("Seconds of audio that the player buffers before it starts.")]
    deterministic: Annotated[Boolean, Doc("Chunks do not depend on timing, so that equal seeds give equal bytes.")]


class SpeechOptions(TypedDict, total=False):
    """Request options except the voice. Missing options get the defaults of the family and the task."""

    seed: Annotated[Seed, Doc("Seed of the noise: the same seed gives the same codes. Random by default.")]
    redraw_from: Annotated[
        list[int],
        FRAMES,
        Doc(
            "Audio frames, in ascending order, at most 4: from each one on, the noise is drawn anew, and the frames"
            " before it stay the same. `[0]` is the whole reply; an entry may repeat ([checks](checks.md))."
        ),
    ]
    adapter: Annotated[String, Doc("Name of a LoRA adapter of the server; none by default.")]
    language: Annotated[
        str,
        BY_FAMILY,
        Doc(
            "Language of the text or the recording, by a name that the model lists or `auto`. The bundled voice accepts"
            " English only."
        ),
    ]
    transliterate: Annotated[
        Boolean,
        Doc("Bundled model: transliterate letters that the voice cannot read to Latin instead of rejecting them."),
    ]
    instruct: Annotated[String, Doc("Description of the speaking style, or of the scene.")]
    pronunciations: Annotated[
        dict[str, Any],
        SPELLINGS,
        Doc(
            "Words or phrases of the text, and how they are spoken: a spelling, or an object of `phonemes` and"
            " `alphabet` for models that read phonemes ([pronunciation](using.md#pronunciation))."
        ),
    ]
    exaggeration: Annotated[
        Exaggeration,
        Doc(
            "Chatterbox: strength of the voice's emotion, 0.5 by default for recordings. IndexTTS-2: share of the"
            " emotion of a second recording, 1 by default."
        ),
    ]
    piece: Annotated[
        Piece,
        Doc(
            "Pocket TTS: number of the piece to speak, from 0, of a text of several; `num_pieces` in the last event's"
            " report is their number. The Python client requests all pieces."
        ),
    ]
    text_mode: Annotated[
        TextMode,
        Doc(
            "Models with streamed text input: read the text before the frames, with them, or with them while it is"
            " being written."
        ),
    ]
    max_audio_s: Annotated[
        Number,
        Doc("Maximum duration of the reply in seconds; by default the [ceiling](using.md#ceiling) of the text."),
    ]
    leading_silence: Annotated[
        Boolean,
        Doc("Keeps the silence with which the replies of some models begin, which is dropped by default."),
    ]
    words: Annotated[
        Words,
        Doc(
            "`aligned`: adds word times to the last event, if the server has an aligner ([word times](word_times.md))."
        ),
    ]
    live: Annotated[
        Boolean, Doc("Opens a session whose audio follows in parts, while it is recorded ([live](live.md)).")
    ]
    resume_s: Annotated[
        ResumeTime, Doc("Time for which a live session outlasts its connection, in seconds; 0 by default.")
    ]
    pauses: Annotated[
        Boolean, Doc("Adds the probabilities of pauses to each event, if the model predicts them ([live](live.md)).")
    ]
    progress: Annotated[
        Boolean,
        Doc(
            "Live transcription: events as frames are read, with words as soon as they are complete, and the time up to"
            " which the transcript is complete ([live](live.md))."
        ),
    ]
    beginning: Annotated[
        String,
        Doc(
            "Transcripts that grow with their recording: text that the transcript continues, `continuation.beginning`"
            ' in the report of an earlier request; `""` in the first one ([live](live.md#by-requests)).'
        ),
    ]
    text: Annotated[
        SegmentOptions,
        OBJECT,
        Doc("Sampling of text; refused if the task generates none."),
    ]
    audio: Annotated[AudioOptions, OBJECT, Doc("Sampling of the audio segment.")]
    depth: Annotated[
        CodeOptions,
        OBJECT,
        Doc("Sampling of the codes after the first stream; missing values are those of the first stream."),
    ]
    latents: Annotated[LatentOptions, OBJECT, Doc("Solver of models whose frames are latents.")]
    temperature: Annotated[Temperature, Doc("Sampling temperature of the task's last segment.")]
    top_k: Annotated[TopK, Doc("`top_k` of the task's last segment.")]
    top_p: Annotated[TopP, Doc("`top_p` of the task's last segment.")]
    guidance_scale: Annotated[GuidanceScale, Doc("Short for `guidance.scale`.")]
    guidance: Annotated[GuidanceOptions, OBJECT, Doc("Classifier-free guidance.")]
    script_temperature: Annotated[Temperature, Doc("Bundled model: temperature of the alignment pointer.")]
    repetition_penalty: Annotated[
        RepetitionPenalty,
        Doc(
            "Reduces the probability of ids that the reply (for some models also the prompt) contains;"
            " 1 is off. The default depends on the model."
        ),
    ]
    schedule: Annotated[
        str | list[int],
        BY_FAMILY,
        Doc(
            "Models with multi-token prediction: ids per forward pass, as the name of a schedule or numbers such as"
            " `[1, 10, 4, 10]`."
        ),
    ]
    output: Annotated[OutputOptions, OBJECT, Doc("Format and destination of the samples.")]
    chunking: Annotated[ChunkingOptions, OBJECT, Doc("Sizes of the chunks in which audio is sent.")]


class OptionsRecord(SpeechOptions, total=False):
    """All request options, in the form of the tensor `options`."""

    voice: Annotated[
        str,
        BY_FAMILY,
        Doc("Name of a voice of the model; several, separated by commas, if `max_voices` of its profile is above 1."),
    ]
