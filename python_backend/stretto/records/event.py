"""What a client is told with each response: the tensor `event`, JSON."""

from typing import NotRequired

from typing_extensions import TypedDict

from stretto.records.json_record import JsonRecord


class WordTime(TypedDict):
    """A word, and the second of the utterance at which it begins."""

    word: str
    start_s: float


class GuidanceTime(TypedDict):
    """The second of the utterance from which on frames are drawn with or without guidance."""

    start_s: float
    is_guided: bool


class RingSlots(TypedDict):
    """Where samples lie in the client's ring: in so many slots from number `slot` on."""

    slot: int
    slots: int
    samples: int
    dtype: str


class ReportEvent(TypedDict):
    """What the whole utterance came to: the fields of `Report`, where the language model sent one, and the decoder's.

    guidance_changes: frame, and whether guided from there on. held_s: how long it stood still for words that had not
    come. audio_s: of all samples. first_sound_s: of the first audible one; None without any.
    """

    finish_reason: NotRequired[str]
    num_prompt_rows: NotRequired[int]
    num_text_tokens: NotRequired[int]
    num_frames: NotRequired[int]
    guided_frames: NotRequired[int]
    guidance_scale: NotRequired[float]
    seed: NotRequired[int]
    queue_s: NotRequired[float]
    first_frame_s: NotRequired[float | None]
    total_s: NotRequired[float]
    guidance_policy: NotRequired[str]
    guidance_changes: NotRequired[list[tuple[int, bool]]]
    held_s: NotRequired[float]
    audio_s: float
    decode_s: float
    first_sound_s: float | None


class Event(TypedDict):
    """What a response adds. start_s, duration_s: where its samples lie in the utterance.

    codes: of all streams, where they were asked for. report: in the last one. ring: where samples went that way.
    session: in the first of a text that is being written.
    """

    utterance: str
    index: int
    segment: str
    text: str
    words: list[WordTime]
    guidance_changes: list[GuidanceTime]
    start_s: float
    duration_s: float
    sample_rate: int
    is_final: bool
    codes: NotRequired[tuple[tuple[int, ...], ...]]
    report: NotRequired[ReportEvent]
    ring: NotRequired[RingSlots]
    session: NotRequired[str]


class PartEvent(TypedDict):
    """The one answer to a part of a text: it was taken."""

    utterance: str
    part: int


EVENT: JsonRecord[Event] = JsonRecord(Event)
PART_EVENT: JsonRecord[PartEvent] = JsonRecord(PartEvent)
