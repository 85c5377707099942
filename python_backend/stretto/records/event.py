"""Event of each response to the client: the JSON tensor `event`."""

from typing import NotRequired

from typing_extensions import TypedDict

from stretto.records.json_record import JsonRecord


class WordTime(TypedDict):
    """Word and its times in the utterance, or in a transcribed recording.

    Attributes:
        start_s: Start in seconds.
        end_s: End in seconds, if known: the word was aligned, or the model itself reports times.
        score: Mean probability of the word's letters in the audio, if the word was aligned.
    """

    word: str
    start_s: float
    end_s: NotRequired[float]
    score: NotRequired[float]


class GuidanceTime(TypedDict):
    """Time at which guidance is switched on or off, in seconds from the utterance's start."""

    start_s: float
    is_guided: bool


class RingSlots(TypedDict):
    """Slots of the client's ring that contain the samples of a response.

    Attributes:
        slot: Number of the first slot.
        slots: Number of slots.
        samples: Number of samples.
        dtype: Dtype of the samples.
    """

    slot: int
    slots: int
    samples: int
    dtype: str


class ReportEvent(TypedDict):
    """Summary of the whole utterance: the decoder's fields and, if the language model sent one, those of its `Report`.

    Attributes:
        guidance_changes: (frame, is_guided) pairs.
        held_s: Time blocked on streamed text, in seconds.
        input_audio_s: Duration of all recordings in the request, in seconds.
        audio_s: Duration of all samples, in seconds.
        decode_s: Processing time of the decoder, in seconds.
        first_sound_s: Time in the utterance of the first sample that is not silent, in seconds; None if all are silent.
        aligned: Set if word times were requested from the aligner: True if this event contains them.
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
    input_audio_s: NotRequired[float]
    audio_s: float
    decode_s: float
    first_sound_s: float | None
    aligned: NotRequired[bool]


class Event(TypedDict):
    """Metadata of a response.

    Attributes:
        start_s: Time in the utterance of the first sample, in seconds.
        duration_s: Duration of the samples, in seconds.
        codes: Codes of all output streams, [S][T], if requested.
        report: Summary, in the last event.
        ring: Slots of the client's ring that contain the samples, if the client has a ring.
        session: In the first event of a streamed text, the session name that the client needs to send more text.
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
    """Acknowledgement of one part of streamed text."""

    utterance: str
    part: int


EVENT: JsonRecord[Event] = JsonRecord(Event)
PART_EVENT: JsonRecord[PartEvent] = JsonRecord(PartEvent)
