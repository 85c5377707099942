"""MOSS-TTS v1.5 (OpenMOSS): Qwen3 8B over rows of a text id and 32 codes, in which codebook k is delayed by k rows.

    prompt                       reply
    text    … assistant \n start │ slot slot slot delay delay end
    code 0  .           .  .     │ A    B    C    D     .     .
    code 1  .           .  .     │ .    A    B    C     D     .

The text stream of a reply has a slot id in each row. The first delay id marks the row of the last frame (D). From then
on, one more codebook per row is empty, and `end` follows the last code. Each codebook has a pad id of its own for empty
rows, whose embedding is added like a code's. The text of a reply is always the start of audio (see `docs/moss_tts.md`),
so it is part of the prompt here. The numbers come from `OpenMOSS-Team/MOSS-TTS-v1.5`; a checkpoint's config.json may
override them (`speech_vocabulary`).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from stretto.family.base import DrawRules, Family, Languages, Task, Vocabulary, builder
from stretto.family.plugin import lazy
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, SAMPLED_WARM_UP, Segment, StreamLayout

FRAME_RATE = 12.5
MAX_MODEL_LEN = 8192  # rows: 5 minutes of speech after a prompt; the backbone's own limit is 40,960
# The tags of the authors' demo, in lower case, with the spelling that a prompt needs.
LANGUAGES = {
    name.lower(): name
    for name in (
        *("Chinese", "Cantonese", "English", "Arabic", "Czech", "Danish", "Dutch", "Finnish", "French", "German"),
        *("Greek", "Hebrew", "Hindi", "Hungarian", "Italian", "Japanese", "Korean", "Macedonian", "Malay", "Persian"),
        *("Polish", "Portuguese", "Romanian", "Russian", "Spanish", "Swahili", "Swedish", "Tagalog", "Thai"),
        *("Turkish", "Vietnamese"),
    )
} | {"persian": "Persian (Farsi)"}


@dataclass(frozen=True)
class MossVocabulary(Vocabulary):
    """Text ids, followed by the ids of each codebook in turn: codes and pad.

    Attributes:
        codebook_size: Number of codes per codebook, without the pad.
        pad: Text id of an empty row.
        turn_start, turn_end: Text ids around a turn.
        audio_start, audio_end: Text ids around audio.
        recorded: Text id of the rows of a recording.
        slot: Text id of a row in which a frame begins.
        delay: Text id of the row of the last frame, and of the rows that complete it.
    """

    num_text_ids: int = 155648
    num_codebooks: int = 32
    codebook_size: int = 1024
    pad: int = 151643
    turn_start: int = 151644
    turn_end: int = 151645
    audio_start: int = 151652
    audio_end: int = 151653
    recorded: int = 151654
    slot: int = 151656
    delay: int = 151662
    max_model_len: int = MAX_MODEL_LEN

    @property
    def pads(self) -> tuple[int, ...]:
        size = self.codebook_size + 1
        return tuple(self.num_text_ids + (codebook + 1) * size - 1 for codebook in range(self.num_codebooks))

    @property
    def layout(self) -> StreamLayout:
        size = self.codebook_size
        codes = tuple(range(pad - size, pad) for pad in self.pads)
        return StreamLayout(
            vocab_size=self.num_text_ids + self.num_codebooks * (size + 1),
            audio=(range(self.slot, self.slot + 1), *codes),
            delays=(0, *range(self.num_codebooks)),
            codebook_streams=tuple(range(1, 1 + self.num_codebooks)),
            pad_id=self.pad,
            extra=((self.delay,), *[()] * self.num_codebooks),
            initial=(self.pad, *self.pads),
        )


@dataclass(frozen=True)
class DelaySlots(DrawRules):
    """Rules that end a reply: the text stream has delay ids until all codebooks are complete, then the end id.

    The table shows a reply with two codebooks and the frames A, B and C. `d` is the delay id, `e` the end of audio,
    and `.` a pad:

        text     slot slot d d e
        code 0   A    B    C . .
        code 1   .    A    B C .
    """

    slot: int
    delay: int
    end: int
    pads: tuple[int, ...]

    state: ClassVar = {"delay_start": -1}  # position of the first delay id
    ends_audio: ClassVar = True
    row_draw: ClassVar = lazy(f"{__package__}.mechanism.arrays:SlotDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.arrays:SlotProgram")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:SlotReference")


# Of `generate` and the demo of the authors: 4,096 rows, 5 minutes and 27 seconds.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.5, top_k=50, max_rows=4096),
    depth=CodeSampling(temperature=1.7, top_k=25, top_p=0.8),
)


def moss_family(
    name: str, vocabulary: Any, end: int, sampling: SamplingConfig, codec: str = "moss", **members: Any
) -> Family:
    """Return a family with the properties of all MOSS-TTS models. `end` is the id of stream 0 that ends a reply."""
    return Family(
        name=name,
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), sampling, system=("audio",), continues="voice"),),
        codec=codec,
        end_of_reply=end,
        max_text_chars=4000,
        max_audio_s=60.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=2,
        steady_chunk_frames=12,
        tail=NO_TAIL,
        subwords=range(vocabulary.num_text_ids),
        **members,
    )


def moss_tts(vocabulary: MossVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    return moss_family(
        "moss_tts",
        vocabulary,
        vocabulary.audio_end,
        SAMPLING,
        languages=Languages(tuple(LANGUAGES)),
        options=("instruct",),
        warm_up=SAMPLED_WARM_UP,
        audio_head="plain",
        drawing=DelaySlots(vocabulary.slot, vocabulary.delay, vocabulary.audio_end, vocabulary.pads),
    )


build = builder(MossVocabulary, moss_tts)
