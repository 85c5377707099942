"""CosyVoice 3 (FunAudioLLM, arXiv 2505.17589): Qwen2 0.5B over text followed by codes at 25 per second.

    zero-shot      [SOS] instruction [end of prompt] words of the recording  text [TASK] its codes │ c0 c1 c2 …
    other prompts  [SOS] instruction [end of prompt]                         text [TASK]           │ c0 c1 c2 …
    streamed text  [SOS] instruction [end of prompt] │ 5 words  15 codes  5 words  15 codes …  rest [TASK] codes …

The language model reads nothing else about the voice. The recording's tokens, mel spectrogram and x-vector go to the
decoder. Every speech id that is not a code ends a reply, as in the authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from stretto.errors import InvalidRequest, shown
from stretto.family.base import DrawRules, Family, Task, Vocabulary, builder
from stretto.family.input_tracks import TextRows, TextTrack
from stretto.family.mechanism import FrameFilter, Mechanism
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

FRAME_RATE = 25.0
# duration of a recording in seconds
MIN_VOICE_S = 1.0
MAX_VOICE_S = 30.0
# codes per text token
MIN_ROWS_PER_TOKEN = 2
MAX_ROWS_PER_TOKEN = 20
# Codes of silence and breath, and how many of them in succession are decoded.
QUIET = (1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323)
MAX_QUIET = 5
# Speech ids after the codes. In streamed text, rows that carry words have FILL or the last spare id.
SOS = 0
EOS = 1
TASK = 2
FILL = 3
NUM_MARKERS = 5
# text ids and codes in a group of streamed text
NUM_WORDS = 5
NUM_GROUP_CODES = 15


class TextGroups(NamedTuple):
    """Streamed text in separate rows, which alternate with sampled rows: here 3 text ids, then 4 frames.

    stream 0      given given given   f0 f1 f2 f3   fill given given   f4 f5 f6 f7   fill given   f8 f9 … end
    text stream   w0    w1    w2      -  -  -  -    w3   w4    w5      -  -  -  -    w6   end_id  -  -

    A run of given rows ends after `num_words` ids, or with the text's end. After the end, rows are sampled freely. If
    `fill_id` is sampled, the group ends early, and its row is the first given row of the next group. A reply begins
    with a given row. If the recording in the prompt has codes left after its words run out, the track supplies
    these codes in the first run: `num_frames` codes after each `num_words` ids, fewer in the last group, and the rest
    after the text's end. All rows of the first run have `given_id`.

    The embeddings of both ids should be zero, because the model reads the text stream. Neither is an id of
    `StreamLayout.audio`, and both are in `Family.drawn_ends`: after the text, `fill_id` ends the reply.

    Attributes:
        num_words: Number of text ids in a group.
        num_frames: Maximum number of sampled rows in a group.
        fill_id: Id of stream 0 in the first given row after each group.
        given_id: Id of stream 0 in the other given rows.
    """

    num_words: int
    num_frames: int
    fill_id: int
    given_id: int


@dataclass(frozen=True)
class CodeRules(DrawRules):
    """Rules for the sampling of codes (`mechanism/draw.py`) and the reading of text between them.

    The state of a reply has three counters: rows of text that it has read, codes in the current group, and rows of text
    before the first sampled row, unless the text ends earlier. Codes of a recording count in the first group.
    """

    codes: range
    groups: TextGroups

    state: ClassVar = {"num_given": 0, "num_in_group": 0, "num_first": 0}
    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:CodeDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:CodeProgram")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:Codes")

    def num_text_entries(self, max_rows: int) -> int:
        return max_rows


@dataclass(frozen=True)
class Quiet(FrameFilter):
    """Codes of silence and breath, numbered from 0. Only the first ones of a pause are decoded.

    Attributes:
        most: Number of successive codes that are decoded. The model reads further codes, but they are neither decoded
            nor reported.
    """

    codes: tuple[int, ...]
    most: int

    open: ClassVar = lazy(f"{__package__}.mechanism.pauses:PauseFilter")


@dataclass(frozen=True, kw_only=True)
class GroupedText(TextTrack):
    """Text that the reply reads in groups between its codes."""

    codes: range
    groups: TextGroups

    open: ClassVar = lazy(f"{__package__}.mechanism.track:GroupTrack.begin")
    random_text: ClassVar = lazy(f"{__package__}.mechanism.reference:random_text")

    @property
    def text_rows(self) -> TextRows:
        """Given rows, which the first state column counts."""
        return TextRows((self.groups.fill_id, self.groups.given_id), 0)

    def max_text_ids(self, num_rows: int) -> int:
        groups = self.groups
        # two rows are left for the end id and a frame
        num_groups, remainder = divmod(num_rows - 2, groups.num_words + groups.num_frames)
        return max(num_groups * groups.num_words + min(remainder, groups.num_words - 1), 0)

    def check_text(self, ids: Sequence[int], tokens: range) -> None:
        """Raise InvalidRequest if an id of a text is a code."""
        if any(token in self.codes for token in ids):
            raise InvalidRequest("text", "token ids of text", shown(list(ids)))


@dataclass(frozen=True)
class CosyVoice3Vocabulary(Vocabulary):
    """Text ids, followed by speech ids: codes, markers and spare ids.

    Attributes:
        quiet: Codes of silence and breath (`Quiet`), numbered from 0.
        voices: Names of the release's voices, in lower case.
    """

    num_text_ids: int = 151936
    num_codes: int = 6561
    num_speech_ids: int = 6761
    end_of_prompt: int = 151646
    quiet: tuple[int, ...] = QUIET
    voices: tuple[str, ...] = ()
    max_model_len: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.num_codes <= self.num_speech_ids - NUM_MARKERS:
            raise ValueError(f"expected {NUM_MARKERS} speech ids more than codes, got {self}")
        if not 0 <= self.end_of_prompt < self.num_text_ids:
            raise ValueError(f"expected end_of_prompt among the text ids, got {self.end_of_prompt}")

    @property
    def codes(self) -> range:
        return range(self.num_text_ids, self.num_text_ids + self.num_codes)

    @property
    def ends(self) -> range:
        """Ids that end a reply."""
        return range(self.codes.stop, self.num_text_ids + self.num_speech_ids)

    @property
    def given(self) -> int:
        """Id of rows that carry words of a streamed text, except the first row of each group."""
        return self.ends[-1]

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.ends.stop,
            audio=(self.codes,),
            delays=(0,),
            codebook_streams=(0,),
            num_input_only=1,
            pad_id=self.num_text_ids - 1,
        )


# Defaults from the authors' cosyvoice3.yaml: repetition-aware sampling with a window of 10 rows and a share of 0.1.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=25, top_p=0.8, max_rows=1500),
    ras_window=10,
    ras_max_repeats=1,
)


# Names of added tokens that the model renders as a sound or a manner of speaking.
SOUNDS = tuple(
    "[breath] <strong> </strong> [noise] [laughter] [cough] [clucking] [accent] [quick_breath] <laughter> </laughter> "
    "[hissing] [sigh] [vocalized-noise] [lipsmack] [mn]".split()
)


def cosyvoice3(vocabulary: CosyVoice3Vocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    ends = vocabulary.ends
    groups = TextGroups(NUM_WORDS, NUM_GROUP_CODES, fill_id=ends[FILL], given_id=vocabulary.given)
    return Family(
        name="cosyvoice3",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, system=("audio", "text")),),
        codec="cosyvoice3",
        end_of_reply=ends[EOS],
        drawn_ends=tuple(ends),
        options=("instruct",),
        tags=SOUNDS,
        voices=vocabulary.voices,
        max_text_chars=500,
        max_audio_s=MAX_VOICE_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=NO_TAIL,
        track=GroupedText(1, vocabulary.layout.pad_id, ends[TASK], codes=vocabulary.codes, groups=groups),
        subwords=range(vocabulary.num_text_ids),
        audio_head="plain",
        drawing=CodeRules(vocabulary.codes, groups),
        mechanism=Mechanism(frames=Quiet(vocabulary.quiet, MAX_QUIET)),
    )


build = builder(CosyVoice3Vocabulary, cosyvoice3)
