"""What a client may say in `options`: JSON whose every part may be left out. What is left out the family decides."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from stretto.records.delivery import Encoding, SampleRate
from stretto.records.json_record import JsonRecord
from stretto.records.ring_address import RingAddress
from stretto.records.sampling import POLICIES, GuidancePolicy

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
    """How ids are drawn: as CodeSampling."""

    temperature: Number
    top_k: Integer
    top_p: Number


class SegmentOptions(CodeOptions, total=False):
    """How the rows of a segment are drawn: as SegmentSampling."""

    min_rows: Integer
    max_rows: Integer


class AudioOptions(SegmentOptions, total=False):
    """How those of audio are drawn, what is too unlikely, and when a code is drawn again: as SamplingConfig."""

    min_p: Number
    ras_window: Integer
    ras_max_repeats: Integer


class GuidanceOptions(TypedDict, total=False):
    """How far and how long a reply is guided."""

    scale: Number
    policy: Policy
    until_s: Number


class OutputOptions(TypedDict, total=False):
    """The form in which samples come, where they go, and whether their codes are told."""

    encoding: Encoding
    sample_rate: SampleRate
    ring: Ring
    codes: Boolean


class ChunkingOptions(TypedDict, total=False):
    """How many frames a chunk has, how long the player gathers sound, and whether chunks are the same in every run."""

    first_frames: Integer
    steady_frames: Integer
    playout_s: Playout
    deterministic: Boolean


class OptionsRecord(TypedDict, total=False):
    """Options of a request.

    temperature, top_k, top_p: of the segment that the task ends with. voice, language, schedule: the family knows
    which. transliterate: spell letters that the voice does not read in Latin ones. instruct: how to speak. text_mode:
    whether words are read before the frames or beside them, and whether others will follow. adapter: the language
    model knows which.
    """

    seed: Integer
    adapter: String
    voice: Any
    language: Any
    transliterate: Boolean
    instruct: String
    text_mode: TextMode
    max_audio_s: Number
    text: Annotated[SegmentOptions, OBJECT]
    audio: Annotated[AudioOptions, OBJECT]
    depth: Annotated[CodeOptions, OBJECT]
    temperature: Number
    top_k: Integer
    top_p: Number
    guidance_scale: Number
    guidance: Annotated[GuidanceOptions, OBJECT]
    script_temperature: Number
    repetition_penalty: Number
    schedule: Any
    output: Annotated[OutputOptions, OBJECT]
    chunking: Annotated[ChunkingOptions, OBJECT]


OPTIONS: JsonRecord[OptionsRecord] = JsonRecord(Annotated[OptionsRecord, OBJECT])
