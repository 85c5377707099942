"""Chatterbox (Resemble AI): the language model T3, a 0.5B Llama over text followed by codes (25 frames per second).

    token          voice … voice │ [START] Hello [SPACE] you [STOP] │ S  S │ c0 c1 c2 …
    position                     │    t0     t1     t2    t3    t4  │ s0 s0 │ s1 s2 s3 …
    unconditional  voice … voice │    .      .      .     .     .   │ S  S │ c0 c1 c2 …

Each id has a learned position, in a separate stream, in addition to the position used by attention. A voice has 34
rows: one for the speaker, 32 for the sound, and one for the emotion. Guidance follows the authors' code: the
unconditional request has the positions of the text without its ids. The numbers come from `T3Config` in
https://github.com/resemble-ai/chatterbox.

Chatterbox Turbo and Nano use GPT-2 instead, with neither guidance nor a position stream:

    token          voice, codes of its recording │ Hello , Ġyou │ S │ c0 c1 c2 …

The first row represents the speaker, up to 375 rows are codes, and tag names such as `[laugh]` are tokens.

Chatterbox Multilingual has the English model's layout, a larger text table, and a language token in front of the text
(`languages.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from stretto.family.base import DrawRules, Family, Task, UnconditionalContext, Vocabulary
from stretto.family.input_tracks import PositionTrack
from stretto.family.mechanism import FrameFilter, Mechanism
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout
from stretto_chatterbox.languages import LANGUAGES, RequiredLanguages

FRAME_RATE = 25.0
MAX_VOICE_S = 30.0  # maximum duration of a voice recording in seconds
# Published ids that mark the beginning and end of the text, and the beginning and end of the codes.
START_OF_TEXT = 255
END_OF_TEXT = 0
START_OF_SPEECH = 6561
END_OF_SPEECH = 6562
SPACE = "[SPACE]"  # token between words


@dataclass(frozen=True)
class ChatterboxVocabulary(Vocabulary):
    """Ids of text, pad, speech, text positions, speech positions and voice rows, in this order.

    Speech ids are in the published order, except for the end, which is last: codes, start, unused ids, end.

    Attributes:
        clones: True if the checkpoint can encode voice recordings.
        languages: Language codes of a multilingual release; empty for the English release.
        has_cangjie: True if the checkpoint has a Cangjie table, which Chinese needs.
    """

    num_text_ids: int = 704
    num_codes: int = 6561
    num_speech_ids: int = 8194
    num_text_positions: int = 2050
    num_speech_positions: int = 4100
    num_voice_rows: int = 34
    voices: tuple[str, ...] = ("default",)
    max_model_len: int = 4096
    clones: bool = False
    languages: tuple[str, ...] = ()
    has_cangjie: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.num_codes < self.num_speech_ids - 1 or not self.voices:
            raise ValueError(f"expected at least one voice, and more speech ids than codes; got {self}")
        if min(self.num_text_ids, self.max_model_len) < 1 or self.num_text_positions < 3 or self.num_voice_rows < 2:
            raise ValueError(f"expected ids and positions of text, and rows of voices; got {self}")
        if not {*self.languages} <= {*LANGUAGES}:
            raise ValueError(f"languages: expected some of {', '.join(LANGUAGES)}, got {self.languages}")
        if self.max_model_len > self.num_speech_positions:
            raise ValueError(f"max_model_len must be <= num_speech_positions, got {self.max_model_len}")

    @property
    def pad(self) -> int:
        """Id of an empty stream, which also replaces the text in the unconditional request."""
        return self.num_text_ids

    @property
    def speech(self) -> range:
        return range(self.pad + 1, self.pad + 1 + self.num_speech_ids)

    @property
    def start(self) -> int:
        """Id that precedes the codes."""
        return self.speech.start + self.num_codes

    @property
    def end(self) -> int:
        """Id that the model samples after the codes."""
        return self.speech[-1]

    @property
    def text_positions(self) -> range:
        return range(self.speech.stop, self.speech.stop + self.num_text_positions)

    @property
    def speech_positions(self) -> range:
        return range(self.text_positions.stop, self.text_positions.stop + self.num_speech_positions)

    def voice(self, name: str) -> range:
        """Return the ids of a voice's rows."""
        start = self.speech_positions.stop + self.voices.index(name) * self.num_voice_rows
        return range(start, start + self.num_voice_rows)

    @property
    def layout(self) -> StreamLayout:
        codes = range(self.speech.start, self.start)
        return StreamLayout(
            vocab_size=self.voice(self.voices[-1]).stop,
            audio=(codes,),
            delays=(0,),
            codebook_streams=(0,),
            num_input_only=1,
            pad_id=self.pad,
            extra=(tuple(range(self.start, self.end)),),
        )


@dataclass(frozen=True)
class PositionContext(UnconditionalContext):
    """Rules for unconditional requests whose rows have the positions of the conditional ones."""

    pair: ClassVar = lazy(f"{__package__}.mechanism.positions:PositionPair")


# The defaults of `ChatterboxTTS.generate`; its cfg_weight of 0.5 is a scale of 1.5.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.8, max_rows=1000),
    min_p=0.05,
    guidance_scale=1.5,
    repetition_penalty=1.2,
)


def chatterbox(vocabulary: ChatterboxVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    end = vocabulary.end
    return Family(
        name="chatterbox",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, system=("audio",) if vocabulary.clones else ()),),
        codec="s3gen",
        end_of_reply=end,
        guided_streams=(0,),
        unconditional=PositionContext(null_id=vocabulary.pad, keep_first=vocabulary.num_voice_rows, keep_last=2),
        voices=vocabulary.voices,
        languages=RequiredLanguages.of_release(vocabulary.languages, vocabulary.has_cangjie),
        max_text_chars=vocabulary.num_text_positions - 2,
        options=("exaggeration",) if vocabulary.clones else (),
        max_audio_s=MAX_VOICE_S if vocabulary.clones else 0.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=NO_TAIL,
        drawing=DrawRules(penalized="all"),
        track=PositionTrack(1, vocabulary.speech_positions[1:]),
        audio_head="plain",
        mechanism=Mechanism(frames=FrameFilter()),
    )


TURBO: Literal["turbo"] = "turbo"  # `release` in the record of a vocabulary


@dataclass(frozen=True)
class TurboVocabulary(Vocabulary):
    """Ids of text, pad, speech (codes, start, end) and one row per voice, in this order.

    Attributes:
        num_text_ids: Number of ids in the tokenizer, including tags.
        voices: Codes of each voice's recording, by voice name.
        clones: True if the checkpoint can encode voice recordings.
        tags: Tokens that stand for sounds or a manner of speaking, such as `[laugh]`.
        release: Marks a vocabulary record as belonging to a Turbo or Nano release.
    """

    num_text_ids: int = 50276
    num_codes: int = 6561
    voices: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"default": (0,)}, hash=False)
    max_model_len: int = 4096
    clones: bool = False
    tags: tuple[str, ...] = ()
    release: Literal["turbo"] = TURBO

    def __post_init__(self) -> None:
        if min(self.num_text_ids, self.num_codes, self.max_model_len) < 1:
            raise ValueError(f"expected ids of text and codes, and rows; got {self}")
        if not self.voices or not all(0 <= code < self.num_codes for codes in self.voices.values() for code in codes):
            raise ValueError(f"expected voices with codes in [0, {self.num_codes}), got {dict(self.voices)}")

    @property
    def pad(self) -> int:
        """Padding id, which the stream layout needs. This family's rows never contain it."""
        return self.num_text_ids

    @property
    def codes(self) -> range:
        return range(self.pad + 1, self.pad + 1 + self.num_codes)

    @property
    def start(self) -> int:
        """Id that precedes the codes."""
        return self.codes.stop

    @property
    def end(self) -> int:
        """Id that the model samples after the codes."""
        return self.start + 1

    def speaker(self, name: str) -> int:
        """Return the id of a voice's first row."""
        return self.end + 1 + list(self.voices).index(name)

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.end + 1 + len(self.voices),
            audio=(self.codes,),
            delays=(0,),
            codebook_streams=(0,),
            pad_id=self.pad,
            extra=((self.start,),),
        )


@dataclass(frozen=True)
class LatePenalty(DrawRules):
    """Sampling rules that apply the repetition penalty after top-k and top-p."""

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:row_draw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:step_program")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:LateScores")


# The defaults of `ChatterboxTurboTTS.generate`.
TURBO_SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.8, top_k=1000, top_p=0.95, max_rows=1000),
    repetition_penalty=1.2,
)
MAX_TURBO_CHARS = 2048


def chatterbox_turbo(vocabulary: TurboVocabulary) -> Family:
    """Return the family of a Turbo or Nano checkpoint with this vocabulary."""
    end = vocabulary.end
    system = ("audio",) if vocabulary.clones else ()
    return Family(
        name="chatterbox",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), TURBO_SAMPLING, system=system),),
        codec="s3gen",
        end_of_reply=end,
        voices=tuple(vocabulary.voices),
        tags=vocabulary.tags,
        max_text_chars=MAX_TURBO_CHARS,
        max_audio_s=MAX_VOICE_S if vocabulary.clones else 0.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=NO_TAIL,
        drawing=LatePenalty(penalized="drawn"),
        audio_head="biased",
        mechanism=Mechanism(frames=FrameFilter()),
    )


def build(vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family for a vocabulary; None selects the published English one."""
    if vocabulary and vocabulary.get("release") == TURBO:
        return chatterbox_turbo(TurboVocabulary.from_record(vocabulary))
    return chatterbox(ChatterboxVocabulary.from_record(vocabulary) if vocabulary else ChatterboxVocabulary())
