"""Higgs Audio v3 (Boson AI): Qwen3 4B over rows of text or of 8 codes, with codebook k delayed by k rows.

    tts    [tts] (ref_text words) (ref_audio recording) text words audio ─► frames …

Each codebook has a begin id `B` and an end id `E` after its codes. `B` precedes a stream's first frame. The end id of
codebook 0 ends the audio, and the other codebooks then complete the last frame; in these rows all streams are sampled:

    stream 0   A B C E ~      row 3 ends the audio of three frames
    stream 1   B A B C ~
    stream 2   B B A B C

The table of the codes' embeddings is also their head. The model generates no text, and was not trained for guidance.
The numbers come from `bosonai/higgs-tts-3-4b`. The rules of a reply are those of
sglang_omni/models/higgs_tts/sampler.py in https://github.com/sgl-project/sglang-omni, with which the authors serve the
model, except for its first rows: there that code samples the end id and ignores it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stretto.family.base import Family, Task, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import SAMPLED_TAIL, Segment, StreamLayout

NAME = "higgs_audio_v3"
FRAME_RATE = 25.0
NUM_MARKS = 2  # ids after the codes of each codebook: begin id and end id
MAX_ROWS = 8192  # length of the sequences in training
TTS = "<|tts|>"
TEXT = "<|text|>"
AUDIO = "<|audio|>"
REF_AUDIO = "<|ref_audio|>"
REF_TEXT = "<|ref_text|>"
END_OF_TEXT = "<|endoftext|>"
NEEDED = (TTS, TEXT, AUDIO, REF_AUDIO, REF_TEXT, END_OF_TEXT)
MARKERS = dict(zip(NEEDED, (151667, 151672, 151670, 151679, 151680, 151643), strict=True))
# Text that a client may have intended as a tag; the tags are those that are tokens of the release.
TAG = re.compile(r"<\|\s*(?:emotion|style|sfx|prosody)\s*:(?:(?!<\||\|>).)*\|>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class HiggsAudioV3Vocabulary(Vocabulary):
    """Text ids, followed by the ids of each codebook in turn: codes, begin id and end id.

    Attributes:
        codebook_size: Number of codes per codebook, excluding begin and end.
        markers: Ids of the markers in a prompt, and of the tags, keyed by token string. The id of `<|endoftext|>` fills
            streams without a code, and ends a reply.
    """

    num_text_ids: int = 151936
    num_codebooks: int = 8
    codebook_size: int = 1024
    markers: Mapping[str, int] = field(default_factory=lambda: MARKERS, hash=False)
    max_model_len: int = MAX_ROWS

    @property
    def marks(self) -> tuple[tuple[int, int], ...]:
        """Begin id and end id of each codebook."""
        width = self.codebook_size + NUM_MARKS
        stops = range(self.num_text_ids + width, self.num_text_ids + width * self.num_codebooks + 1, width)
        return tuple((stop - 2, stop - 1) for stop in stops)

    @property
    def layout(self) -> StreamLayout:
        (first, _), *others = self.marks
        return StreamLayout(
            vocab_size=self.marks[-1][1] + 1,
            audio=tuple(range(begin - self.codebook_size, begin) for begin, _ in self.marks),
            delays=tuple(range(self.num_codebooks)),
            codebook_streams=tuple(range(self.num_codebooks)),
            pad_id=self.markers[END_OF_TEXT],
            extra=((first,), *others),  # the end id of stream 0 ends the audio
        )

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags for emotion, style, prosody and sounds, in the order of their ids."""
        return tuple(sorted(filter(TAG.fullmatch, self.markers), key=self.markers.__getitem__))


def higgs_audio_v3(vocabulary: HiggsAudioV3Vocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    layout = vocabulary.layout
    end = vocabulary.markers[END_OF_TEXT]
    # The authors' recommendation in AGENTS.md of the release. Codebook 0 may end from the row on in which all codebooks
    # have begun.
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(temperature=0.8, top_k=50, min_rows=vocabulary.num_codebooks),
    )
    return Family(
        name=NAME,
        layout=layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), sampling, system=("audio", "text"), continues="voice"),),
        codec="higgs",
        end_of_reply=end,
        end_of_audio=vocabulary.marks[0][1],
        tags=vocabulary.tags,
        max_text_chars=4000,
        max_audio_s=30.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=SAMPLED_TAIL,
        subwords=range(vocabulary.num_text_ids),
        markers=vocabulary.markers,
        audio_head="plain",
    )


build = builder(HiggsAudioV3Vocabulary, higgs_audio_v3)
