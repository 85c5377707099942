"""IndexTTS-2 (bilibili): GPT-2 over text followed by codes, 50 per second, in the voice of a recording.

    token     voice … voice  speed speed │ [START] text [STOP] │ S  │ c0 c1 c2 …
    position                             │   t0     t1    t2   │ s0 │ s2 s3 s4 …

Each id has a learned position, in a separate stream; attention uses none. As in the authors' generation, no code has
position 1. The rows of the voice are its 32 vectors, to each of which the vector of the emotion is added. The two rows
of speed are constants. There is no guidance. The repetition penalty counts code 1 as generated, because the authors'
code calls `generate` with ones instead of the prompt: here the rows of the voice have its id. The numbers come from the
config.yaml of `IndexTeam/IndexTTS-2`.
"""

from dataclasses import dataclass
from fractions import Fraction

from stretto.family.base import DrawRules, Family, Task, Vocabulary, builder
from stretto.family.input_tracks import PositionTrack
from stretto.family.mechanism import FrameFilter, Mechanism
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

SAMPLE_RATE = 22_050
HOP = 256  # samples of a mel frame
FRAMES_PER_CODE = Fraction(43, 25)  # mel frames; the number of an utterance's frames is rounded down
FRAME_RATE = float(SAMPLE_RATE / (FRAMES_PER_CODE * HOP))
MAX_VOICE_S = 30.0  # maximum duration of a recording in seconds; the first 15 s are read
MAX_CHARS = 150  # in Chinese they take about 30 s, as long as MAX_CODES
# ids of text that begin and end it
START_OF_TEXT = 0
END_OF_TEXT = 1
NUM_SPEEDS = 2
FIRST_POSITION = 2  # of the codes
MAX_CODES = 1500  # of a reply, by default
COUNTED_CODE = 1  # code that the repetition penalty counts from the beginning


@dataclass(frozen=True)
class IndexVocabulary(Vocabulary):
    """Ids of text, pad, codes, start, end, text positions, code positions and speeds, in this order."""

    num_text_ids: int = 12001
    num_codes: int = 8192
    num_text_positions: int = 602
    num_code_positions: int = 1818
    num_voice_rows: int = 32
    max_model_len: int = 2453

    def __post_init__(self) -> None:
        if min(self.num_text_ids, self.num_codes, self.num_voice_rows, self.max_model_len) < 2:
            raise ValueError(f"expected ids of text and codes, and rows; got {self}")
        if min(self.num_text_positions, self.num_code_positions) < 4:
            raise ValueError(f"expected positions of text and codes, got {self}")

    @property
    def pad(self) -> int:
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

    @property
    def text_positions(self) -> range:
        return range(self.end + 1, self.end + 1 + self.num_text_positions)

    @property
    def code_positions(self) -> range:
        return range(self.text_positions.stop, self.text_positions.stop + self.num_code_positions)

    @property
    def speeds(self) -> range:
        """Ids of the two rows after the voice."""
        return range(self.code_positions.stop, self.code_positions.stop + NUM_SPEEDS)

    @property
    def max_codes(self) -> int:
        return self.num_code_positions - FIRST_POSITION - 1  # the last position is for the end

    @property
    def max_text_tokens(self) -> int:
        """Maximum number of tokens of a text, without its start and end."""
        return self.num_text_positions - 2

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.speeds.stop,
            audio=(self.codes,),
            delays=(0,),
            codebook_streams=(0,),
            num_input_only=1,
            pad_id=self.pad,
            extra=((self.start,),),
        )


def indextts2(vocabulary: IndexVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    # The defaults of `IndexTTS2.infer`, except for its beams.
    max_codes = min(MAX_CODES, vocabulary.max_codes)
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(temperature=0.8, top_k=30, top_p=0.8, max_rows=max_codes),
        repetition_penalty=10.0,
    )
    return Family(
        name="indextts2",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), sampling, also=("audio",), system=("audio",)),),
        codec="indextts2",
        end_of_reply=vocabulary.end,
        options=("exaggeration", "instruct"),
        max_text_chars=MAX_CHARS,
        max_audio_s=MAX_VOICE_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=NO_TAIL,
        drawing=DrawRules(penalized="all"),
        track=PositionTrack(1, vocabulary.code_positions[FIRST_POSITION:]),
        audio_head="biased",
        mechanism=Mechanism(frames=FrameFilter()),
    )


build = builder(IndexVocabulary, indextts2)
