"""Kyutai STT: a row carries the previously generated text token and one frame of the recording.

    stream 0        begin  t0  t1  t2 …     generated: PAD, or pieces of a word, or END_PAD where a word begins
    streams 1 … K   begin  f0  f1  f2 …     codes of frame 0, 1, 2 … of the recording, and of the silence after it

Text follows the sound after a fixed delay in rows. The reply ends with the recording, after further rows for the delay
and for 1 s of silence. Delayed streams modeling: https://arxiv.org/abs/2509.08753.
"""

from dataclasses import dataclass
from typing import ClassVar

from stretto.family.base import Family, Task, Vocabulary, builder
from stretto.family.input_tracks import CodeTrack
from stretto.family.mechanism import Mechanism, PauseHeads
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

NAME = "kyutai_stt"
FRAME_RATE = 12.5
# text ids: the next token begins a word; no text
END_PAD = 0
PAD = 3
FLUSH_S = 1.0  # silence after the recording, in addition to the delay
MAX_AUDIO_S = 300.0
PAUSES_S = (0.5, 1.0, 2.0, 3.0)  # pauses that the heads predict


@dataclass(frozen=True)
class KyutaiVocabulary(Vocabulary):
    """Ids that Kyutai STT and Moshi have in common: text, initial text, and two ids of our own."""

    num_text_ids: int
    num_codebooks: int
    codebook_size: int

    def __post_init__(self) -> None:
        if self.num_text_ids <= PAD or self.num_codebooks < 1 or self.codebook_size < 1:
            raise ValueError(f"expected at least {PAD + 1} text ids, a codebook and a code, got {self}")

    @property
    def text_end(self) -> int:
        """First id after the text ids."""
        return self.num_text_ids

    @property
    def initial_text(self) -> int:
        """Text id of the first row."""
        return self.text_end

    @property
    def end_of_reply(self) -> int:
        """Id of the row that ends a reply, which is not an id of the model."""
        return self.text_end + 1

    @property
    def nothing(self) -> int:
        """Id of an empty stream."""
        return self.text_end + 2


@dataclass(frozen=True)
class Pauses(PauseHeads):
    """Pauses that the model predicts in each row, from its hidden state. Class 0 of a head is the pause."""

    lengths_s: tuple[float, ...]
    num_classes: int

    sampler: ClassVar = lazy(f"{__package__}.mechanism:PauseSampler")


@dataclass(frozen=True)
class SttVocabulary(KyutaiVocabulary):
    """Ids of text, initial text, two ids of our own, and each codebook's codes and initial id.

    Attributes:
        delay_rows: Number of rows by which the text follows the sound.
        delay_s: The published delay in seconds, which determines the length of the silence after the recording.
        prefix_s: Silence before the recording, in seconds.
        num_pauses: Number of heads that predict pauses, at most 4.
    """

    num_text_ids: int = 8000
    num_codebooks: int = 32
    codebook_size: int = 2048
    delay_rows: int = 6
    delay_s: float = 0.5
    prefix_s: float = 0.0
    max_model_len: int = 45_056  # an hour of live audio
    num_pauses: int = 0
    num_pause_classes: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_rows < 0 or not 0 <= self.delay_s <= 10 or not 0 <= self.prefix_s <= 10:
            raise ValueError(f"expected a delay and a prefix between 0 and 10 s, got {self}")
        if not 0 <= self.num_pauses <= len(PAUSES_S) or self.num_pause_classes < 2:
            raise ValueError(f"expected at most {len(PAUSES_S)} heads of pauses with two classes or more, got {self}")

    @property
    def vocab_size(self) -> int:
        return self.nothing + 1 + self.num_codebooks * (self.codebook_size + 1)

    @property
    def first_codes(self) -> range:
        """First id of each codebook."""
        return range(self.nothing + 1, self.vocab_size, self.codebook_size + 1)

    @property
    def prefix_rows(self) -> int:
        return round(self.prefix_s * FRAME_RATE)

    @property
    def flush_s(self) -> float:
        """Silence after the recording, in seconds."""
        return self.delay_s + FLUSH_S


def kyutai_stt(vocabulary: SttVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    text = range(vocabulary.num_text_ids)
    streams = range(1, 1 + vocabulary.num_codebooks)
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0, max_rows=vocabulary.max_model_len),
        audio=SegmentSampling(temperature=0.0),
    )
    silence_s = vocabulary.prefix_s + vocabulary.flush_s
    longest_s = (vocabulary.max_model_len - 4) / FRAME_RATE - silence_s
    pauses_s = PAUSES_S[: vocabulary.num_pauses]
    return Family(
        name=NAME,
        layout=StreamLayout.of_text(vocabulary.vocab_size, vocabulary.nothing, vocabulary.num_codebooks),
        tasks=(Task("asr", (Segment.TEXT,), (text,), ("audio",), sampling),),
        codec="mimi",
        end_of_reply=vocabulary.end_of_reply,
        max_audio_s=max(1.0, min(MAX_AUDIO_S, float(int(longest_s)))),
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        track=CodeTrack(streams),
        mechanism=Mechanism(pauses=Pauses(pauses_s, vocabulary.num_pause_classes) if pauses_s else None),
    )


build = builder(SttVocabulary, kyutai_stt)
