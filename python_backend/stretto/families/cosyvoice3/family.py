"""CosyVoice 3 (FunAudioLLM, arXiv 2505.17589): Qwen2 0.5B over text followed by codes at 25 per second.

    zero-shot      [SOS] instruction [end of prompt] words of the recording  text [TASK] its codes │ c0 c1 c2 …
    other prompts  [SOS] instruction [end of prompt]                         text [TASK]           │ c0 c1 c2 …
    streamed text  [SOS] instruction [end of prompt] │ 5 words  15 codes  5 words  15 codes …  rest [TASK] codes …

The language model reads nothing else about the voice. The recording's tokens, mel spectrogram and x-vector go to the
decoder. Every speech id that is not a code ends a reply, as in the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stretto.families.base import Family, Task, TextGroups, TextTrack, UnconditionalContext, Vocabulary
from stretto.families.mechanism import Mechanism
from stretto.families.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

FRAME_RATE = 25.0
MIN_VOICE_S, MAX_VOICE_S = 1.0, 30.0  # duration of a recording in seconds
MIN_ROWS_PER_TOKEN, MAX_ROWS_PER_TOKEN = 2, 20  # codes per text token
# Codes of silence and breath. After five in a row, the model still reads any further ones, but they are not decoded.
QUIET = (1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323)
MAX_QUIET = 5
# Speech ids after the codes. In streamed text, rows that carry words have FILL or the last spare id.
SOS, EOS, TASK, FILL, NUM_MARKERS = 0, 1, 2, 3, 5
NUM_WORDS, NUM_GROUP_CODES = 5, 15  # text ids and codes in a group of streamed text


@dataclass(frozen=True)
class CodeRules(Mechanism):
    """How codes are sampled (`mechanism/draw.py`), and which frames are decoded.

    Long pauses are generated, but neither decoded nor reported beyond `max_quiet` successive `quiet` codes.
    """

    quiet: tuple[int, ...]
    max_quiet: int

    frame_filter: ClassVar = lazy(f"{__package__}.mechanism.pauses:PauseFilter")
    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:row_draw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:step_program")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:Codes")


@dataclass(frozen=True)
class CosyVoice3Vocabulary(Vocabulary):
    """Text ids, followed by speech ids: codes, markers and spare ids.

    Attributes:
        num_text_ids: Number of rows in the text table.
        num_codes: Number of codes.
        num_speech_ids: Number of codes, markers and spare ids.
        end_of_prompt: Id of `<|endofprompt|>`.
        quiet: Codes of silence.
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
    return Family(
        name="cosyvoice3",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, system=("audio", "text")),),
        codec="cosyvoice3",
        end_of_reply=ends[EOS],
        end_of_text=ends[EOS],
        end_of_audio=ends[EOS],
        drawn_ends=tuple(ends),
        transition=(),
        guided_streams=(),
        unconditional=UnconditionalContext(null_id=vocabulary.layout.pad_id, keep_first=1, keep_last=1),
        options=("instruct",),
        tags=SOUNDS,
        voices=vocabulary.voices,
        max_text_chars=500,
        max_audio_s=MAX_VOICE_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=NO_TAIL,
        text_track=TextTrack(
            1,
            pad_id=vocabulary.layout.pad_id,
            end_id=ends[TASK],
            groups=TextGroups(NUM_WORDS, NUM_GROUP_CODES, fill_id=ends[FILL], given_id=vocabulary.given),
        ),
        subwords=range(vocabulary.num_text_ids),
        audio_head="plain",
        mechanism=CodeRules(vocabulary.quiet, MAX_QUIET),
    )


def build(vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family for a vocabulary; None selects the published one."""
    return cosyvoice3(CosyVoice3Vocabulary.from_record(vocabulary) if vocabulary else CosyVoice3Vocabulary())
