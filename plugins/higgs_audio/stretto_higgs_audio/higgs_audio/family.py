"""Higgs Audio v2 (Boson AI): Llama 3.2 3B over rows of text or of 8 codes, with codebook k delayed by k rows.

    tts    [bos] system … user Hello assistant <audio_out_bos> B ─► frames … row in which all streams have ended

Earlier speech is given as pairs of turns: a user turn with the words, and an assistant turn with the speech. Such a
pair also serves to clone a voice. A row in which all streams carry their begin id `B` precedes the first sampled row.
Each stream has its own begin and end ids (`Staircase`). The model generates no text. Rows of codes have separate
feed-forward layers (`model.py`). Guidance was added by this server: the unconditional request contains neither words
nor voices. The numbers come from `bosonai/higgs-audio-v2-generation-3B-base`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from stretto.family.base import ROLES, DrawRules, Family, Task, UnconditionalContext, Vocabulary, builder
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, SAMPLED_WARM_UP, Segment, StreamLayout

FRAME_RATE = 25.0
NUM_MARKS = 2  # ids after the codes of each codebook: begin id and end id
BEGIN = "<|begin_of_text|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"
BEGIN_OF_AUDIO = "<|audio_out_bos|>"
END_OF_AUDIO = "<|audio_eos|>"
SCENE_START = "<|scene_desc_start|>"
SCENE_END = "<|scene_desc_end|>"
NEEDED = (BEGIN, START_HEADER, END_HEADER, END_OF_TURN, BEGIN_OF_AUDIO, END_OF_AUDIO)
# As in the Llama 3 tokenizer, with reserved tokens renamed by the release.
MARKERS = dict(zip(NEEDED, (128000, 128006, 128007, 128009, 128013, 128012), strict=True))


@dataclass(frozen=True)
class HiggsAudioVocabulary(Vocabulary):
    """Text ids, followed by the ids of each codebook in turn: codes, begin id and end id.

    Attributes:
        codebook_size: Number of codes per codebook, excluding begin and end.
        pad: Id that fills a stream without a code.
        end_of_reply: Id by which the engine recognises the end of the reply; its row is not fed to the model.
        markers: Ids of the markers, keyed by token string. If the two scene markers are missing, they are written as
            text.
    """

    num_text_ids: int = 128256
    num_codebooks: int = 8
    codebook_size: int = 1024
    pad: int = 128001
    end_of_reply: int = 128009
    markers: Mapping[str, int] = field(default_factory=lambda: MARKERS, hash=False)
    max_model_len: int = 2048

    @property
    def layout(self) -> StreamLayout:
        size = self.codebook_size
        stop = self.num_text_ids + self.num_codebooks * (size + NUM_MARKS)
        starts = range(self.num_text_ids, stop, size + NUM_MARKS)
        return StreamLayout(
            vocab_size=stop,
            audio=tuple(range(start, start + size) for start in starts),
            delays=tuple(range(self.num_codebooks)),
            codebook_streams=tuple(range(self.num_codebooks)),
            pad_id=self.pad,
            extra=tuple((start + size, start + size + 1) for start in starts),
        )


@dataclass(frozen=True)
class Staircase(DrawRules):
    """Begin and end ids of the output streams, which replace pads.

    Each stream has a begin id `b` and an end id `d`, which count as sampled (SAMPLED_WARM_UP, NO_TAIL). Once any stream
    has sampled its end id, one more stream per row is forced to its end id (`f`), in stream order. The other streams
    continue to be sampled. end_of_audio is in the row where all streams have their end id. The number of rows depends
    on the sampled ids:

                   as trained       one stream ends early
        stream 0   A B C d f e      A B C f f e
        stream 1   b A B C d .      b A d ~ f .
        stream 2   b b A B C .      b b A ~ ~ .

    The ids are in `StreamLayout.extra`, with a stream's end id last. `Family.end_frame` consists of the end ids.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]

    state: ClassVar = {"first_eos": -1}  # first position at which any stream sampled its end id
    row_draw: ClassVar = lazy(f"{__package__}.mechanism.arrays:StairDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.arrays:StairProgram")


# Temperature, top-k and top-p are those of examples/generation.py in https://github.com/boson-ai/higgs-audio; repeats
# are limited as in generation_config.json (`ras_win_len`, `ras_win_max_num_repeat`).
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=50, top_p=0.95),
    ras_window=7,
    ras_max_repeats=2,
)


def higgs_audio(vocabulary: HiggsAudioVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    layout = vocabulary.layout
    begin, end = zip(*layout.extra, strict=True)
    return Family(
        name="higgs_audio_v2",
        layout=layout,
        tasks=(
            Task(
                "tts",
                (Segment.AUDIO,),
                (),
                ("text",),
                SAMPLING,
                has_history=True,
                system=("text", "audio"),
                voice_roles=ROLES,
                continues="turns",
            ),
        ),
        codec="higgs",
        end_of_reply=vocabulary.end_of_reply,
        guided_streams=tuple(range(layout.num_output_streams)),
        unconditional=UnconditionalContext(null_id=vocabulary.pad, keep_first=1, keep_last=2),
        options=("instruct",),
        max_text_chars=4000,
        max_audio_s=30.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        warm_up=SAMPLED_WARM_UP,
        tail=NO_TAIL,
        subwords=range(vocabulary.num_text_ids),
        markers=vocabulary.markers,
        end_frame=end,
        audio_head="plain",
        drawing=Staircase(begin, end),
    )


build = builder(HiggsAudioVocabulary, higgs_audio)
