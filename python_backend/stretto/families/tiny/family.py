"""`tiny`: the bundled model. It converts characters to phonemes and then to speech, or audio to characters.

    tts   [tts][voice] c a t [begin_text] ─► pau k ae t pau [end_of_text] [begin_audio] rows … [end_of_reply]
    asr   [asr][begin_audio] audio rows [begin_text] ─► pau k ae t pau [separator] c a t [end_of_reply]

A row has stream 0 (text, or the phoneme spoken in this frame), seven codec streams, and one input-only stream. The
latter carries the ordinal number of the row's phoneme (text and audio segments) or of the row's frame (audio rows of a
prompt).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from stretto.family.base import DrawRules, Family, Languages, Task, TextRate, UnconditionalContext
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout
from stretto_contract.voice_details import VoiceDetails

PAD, END_OF_REPLY, END_OF_TEXT, BEGIN_AUDIO, END_OF_AUDIO, NULL, TTS, ASR, BEGIN_TEXT, SEPARATOR = range(10)
VOICES = {"heart": 10}
# The list of voices in hexgrad/Kokoro-82M, from whose `af_heart` the voice was distilled.
VOICE_DETAILS = {"heart": VoiceDetails("en-US", "female")}
CHARACTERS = " abcdefghijklmnopqrstuvwxyz',.?!"
FIRST_CHARACTER = 16
PHONEMES = (  # as in the CMU dictionary: a vowel with 1 has the main stress, with 2 a secondary one
    *"b ch d dh dx f g hh jh k l m n ng p pau r s sh t th v w y z zh ac ax el ix".split(),
    *(f"{vowel}{stress}" for vowel in "aa ae ah ao aw ay eh er ey ih iy ow oy uh uw".split() for stress in ("", 1, 2)),
)
FIRST_PHONEME = 48
FIRST_FRAME_TOKEN = 128  # + 2 * phoneme: first frame of a phoneme; + 2 * phoneme + 1: any later frame of it
PHONEME_INDEX_BASE = 288  # + ordinal, 1 … 511
FRAME_INDEX_BASE = 800  # + ordinal, 1 … 511
FIRST_CODE = 1312
NUM_CODEBOOKS = 7
CODEBOOK_SIZE = 256
LEAD = 3  # delay of the codec streams, in rows, so that they can depend on the phonemes that follow

LAYOUT = StreamLayout(
    vocab_size=FIRST_CODE + NUM_CODEBOOKS * CODEBOOK_SIZE,
    audio=(
        range(FIRST_FRAME_TOKEN, FIRST_FRAME_TOKEN + 2 * len(PHONEMES)),
        *(range(FIRST_CODE + k * CODEBOOK_SIZE, FIRST_CODE + (k + 1) * CODEBOOK_SIZE) for k in range(NUM_CODEBOOKS)),
    ),
    delays=(0, *(LEAD + k for k in range(NUM_CODEBOOKS))),
    codebook_streams=tuple(range(1, NUM_CODEBOOKS + 1)),
    num_input_only=1,
    pad_id=PAD,
)
SPOKEN = range(FIRST_PHONEME, FIRST_PHONEME + len(PHONEMES))
WRITTEN = range(FIRST_CHARACTER, FIRST_CHARACTER + len(CHARACTERS))
SPACE = range(FIRST_CHARACTER, FIRST_CHARACTER + 1)


class PointerConstants(NamedTuple):
    """Constants of the pointer's rules, which kernels also read; see `AlignmentPointer`.

    Attributes:
        first_id: First id of stream 0 in audio.
    """

    first_id: int
    end_of_audio: int
    pad_id: int
    spoken_start: int
    spoken_stop: int
    first_frame: int
    index_base: int
    index_stream: int
    max_entries: int


@dataclass(frozen=True)
class AlignmentPointer(DrawRules):
    """Alignment pointer, which aligns the audio segment with the preceding text segment.

    Every text token in `spoken` is an entry, in order. In each row of the audio segment, the pointer stays on its entry
    or advances to the next one. Stream 0 carries `first_frame + 2 * (token - spoken.start)` in the first row of an
    entry, and that id + 1 while the pointer stays. The input-only stream `index_stream` carries `index_base` plus the
    entry's ordinal (from 1). P(advance) = 1 - P(stay), where the softmax is over the audio interval of stream 0 and
    `end_of_audio`. Advancing from the last entry ends the audio.
    """

    spoken: range
    first_frame: int
    index_base: int
    index_stream: int
    max_entries: int

    state: ClassVar = {"num_entries": 0, "pointer": 0}
    computes_first: ClassVar = True
    word_column: ClassVar = 1  # the pointer, which moves by one entry at most
    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:ScriptDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:ScriptProgram")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:Pointer")

    def ids(self, rules: Any) -> PointerConstants:
        """Return the constants of the pointer's rules, given the `SegmentRules` of the family."""
        family = rules.family
        return PointerConstants(
            first_id=family.layout.audio[0].start,
            end_of_audio=family.end_of_audio,
            pad_id=family.layout.pad_id,
            spoken_start=self.spoken.start,
            spoken_stop=self.spoken.stop,
            first_frame=self.first_frame,
            index_base=self.index_base,
            index_stream=self.index_stream,
            max_entries=self.max_entries,
        )

    def num_text_entries(self, max_rows: int) -> int:
        """Return the size of a slot's table: the entries, and an unused one before them."""
        return self.max_entries + 1

    def written_entries(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the entries of a text; see `DrawRules.written_entries`."""
        return [0, *(token for token in ids if token in self.spoken)]


# Phonemes and characters of a transcript. Its voice needs at most 24 + 38 per second of speech.
TEXT_RATE = TextRate(first_rows=24, rows_per_s=40.0)
SPEECH = SegmentSampling(temperature=0.3, top_k=30, max_rows=800)
POINTER = AlignmentPointer(
    spoken=SPOKEN, first_frame=FIRST_FRAME_TOKEN, index_base=PHONEME_INDEX_BASE, index_stream=8, max_entries=511
)

TINY = Family(
    name="tiny",
    layout=LAYOUT,
    tasks=(
        Task(
            name="tts",
            segments=(Segment.TEXT, Segment.AUDIO),
            text=(SPACE, SPOKEN),
            needs=("text",),
            sampling=SamplingConfig(
                text=SegmentSampling(temperature=0.0, max_rows=511),
                audio=SPEECH,
                guidance_scale=2.0,
                script_temperature=0.6,
            ),
        ),
        Task(
            name="asr",
            segments=(Segment.TEXT,),
            text=(WRITTEN, SPOKEN, range(SEPARATOR, SEPARATOR + 1)),
            needs=("audio",),
            sampling=SamplingConfig(text=SegmentSampling(temperature=0.0, max_rows=800), audio=SPEECH),
            text_rate=TEXT_RATE,
        ),
    ),
    codec="tiny",
    end_of_reply=END_OF_REPLY,
    end_of_text=END_OF_TEXT,
    end_of_audio=END_OF_AUDIO,
    transition=(BEGIN_AUDIO,),
    guided_streams=tuple(range(1, NUM_CODEBOOKS + 1)),
    unconditional=UnconditionalContext(null_id=NULL, keep_first=2, keep_last=1, hidden_streams=(0, 8)),
    voices=tuple(VOICES),
    voice_details=VOICE_DETAILS,
    languages=Languages(("english", "en")),
    options=("script_temperature", "transliterate"),
    max_text_chars=300,
    max_audio_s=18.0,
    max_model_len=2048,
    frame_rate=80 / 3,
    drawing=POINTER,
)


def build(vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family; `vocabulary` is ignored, because there is only one."""
    return TINY
