"""Orpheus 3B (Canopy Labs), a Llama 3.2 3B that generates the seven codes of each SNAC frame one after another.

    tts    [human][begin] tara: Hello [end of turn][end of human][AI][speech] ─► a b c d e f g a b c … [end of speech]

Each of the seven positions in a frame has its own 4096 ids. Only ids for the row's position are sampled, whereas the
authors' code samples any id and drops those that do not fit. Audio ends between two frames. A reply has no text, no
delay and no guidance. The numbers are those of `canopylabs/orpheus-3b-0.1-ft`. The vocabulary in a checkpoint's
config.json may override them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stretto.family.base import DrawRules, Family, Task, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, FrameCodec, Segment, StreamLayout

ROWS_PER_FRAME = 7
FRAME_RATE = 24000 / 2048  # SNAC at 24 kHz
MAX_FRAMES = 171  # 14.6 s; the authors ask for at most 1200 ids
VOICES = ("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe")
MARKERS = {
    "begin_of_text": 128000,
    "end_of_turn": 128009,
    "speech": 128257,
    "end_of_speech": 128258,
    "human": 128259,
    "end_of_human": 128260,
    "ai": 128261,
    "pad": 128263,
}


MAX_NAME_CHARS = 40


def _is_name(value: str) -> bool:
    pattern = rf"[\w-]{{1,{MAX_NAME_CHARS}}}"
    return re.fullmatch(pattern, value) is not None and value == value.lower()


@dataclass(frozen=True)
class OrpheusVocabulary(Vocabulary):
    """Text ids, followed by markers and by the codes of the seven positions in a frame, position by position.

    Attributes:
        vocab_size: Number of rows in the embedding table.
        num_text_ids: Number of ids in the Llama 3 tokenizer.
        first_code: Id of code 0 at the first position.
        codebook_size: Number of codes per position.
        markers: Ids that no text contains, by name.
        voices: Names of the voices, the default first.
    """

    vocab_size: int = 156940
    num_text_ids: int = 128256
    first_code: int = 128266
    codebook_size: int = 4096
    markers: Mapping[str, int] = field(default_factory=lambda: MARKERS, hash=False)
    voices: tuple[str, ...] = VOICES
    max_model_len: int = 4096

    def __post_init__(self) -> None:
        if not self.voices or not all(map(_is_name, self.voices)):  # requests are compared in lower case
            expected = f"names in lower case, of 1 to {MAX_NAME_CHARS} letters, digits, - and _"
            raise ValueError(f"voices: expected {expected}, got {str(self.voices)[:60]}")

    @property
    def layout(self) -> StreamLayout:
        """Layout with a single stream and seven rows per frame."""
        size = self.codebook_size
        first = self.first_code
        places = tuple(range(start, start + size) for start in range(first, first + ROWS_PER_FRAME * size, size))
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(range(places[0].start, places[-1].stop),),
            delays=(0,),
            codebook_streams=(0,),
            pad_id=self.markers["pad"],
            frame_codec=FrameCodec(places),
        )


# Defaults of the authors' package, orpheus-speech 0.1.0. The penalty applies to generated codes.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.6, top_p=0.8, min_rows=1, max_rows=MAX_FRAMES * ROWS_PER_FRAME),
    repetition_penalty=1.3,
)


TAGS = ("<laugh>", "<chuckle>", "<sigh>", "<cough>", "<sniffle>", "<groan>", "<yawn>", "<gasp>")


def orpheus(vocabulary: OrpheusVocabulary) -> Family:
    """Return the family for a vocabulary."""
    end = vocabulary.markers["end_of_speech"]
    return Family(
        name="orpheus",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING),),
        codec="snac",
        end_of_reply=end,
        voices=vocabulary.voices,
        tags=TAGS,
        max_text_chars=300,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=1,
        steady_chunk_frames=24,
        tail=NO_TAIL,
        subwords=range(vocabulary.num_text_ids),
        markers=vocabulary.markers,
        drawing=DrawRules(penalized="all"),
    )


build = builder(OrpheusVocabulary, orpheus)
