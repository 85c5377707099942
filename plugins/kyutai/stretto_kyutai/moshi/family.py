"""Moshi (Kyutai): a row carries a text token, a frame of the model's own speech, and a frame of the user's.

    stream 0        begin  t0   t1   t2  …     generated: PAD, END_PAD, or a piece of a word
    stream 1        begin  a0   a1   a2  …     generated: codebook 0 of the model's frames
    streams 2 … 8   begin  begin a0  a1  …     generated: its other codebooks, one row later
    stream 9        begin  u0   u1   u2  …     given: codebook 0 of the user's frames
    streams 10 … 16 begin  begin u0  u1  …     given: its other codebooks, one row later

A depth transformer with separate weights for each codebook generates the codes of a row. The user's audio is the clock:
one row follows each of its frames, and the reply ends with the audio. The model never ends a reply itself. Most of its
text tokens are PAD or END_PAD. Paper: https://arxiv.org/abs/2410.00037. The numbers come from
`kyutai/moshika-pytorch-bf16`.
"""

from dataclasses import dataclass, field

from stretto.family.base import DepthSpec, Family, Task, builder
from stretto.family.input_tracks import CodeTrack
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout
from stretto_kyutai.kyutai_stt.family import KyutaiVocabulary

NAME = "moshi"
FRAME_RATE = 12.5
MAX_AUDIO_S = 300.0
MAX_DELAY = 16
DEPTH = DepthSpec(
    hidden=1024,
    intermediate=2816,
    num_layers=6,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    eps=1e-8,
    schedule=tuple(range(8)),
)


@dataclass(frozen=True)
class FrameVocabulary(KyutaiVocabulary):
    """Vocabulary with text and codes in each row.

    It has the text ids, our own ids, and for each codebook its codes and then its initial id.

    Attributes:
        num_codebooks: Number of codebooks of the model's speech, K.
        delays: Delay of each of these codebooks in rows; the first delay is 0.
    """

    delays: tuple[int, ...]
    max_model_len: int
    depth: DepthSpec

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delays) != self.num_codebooks or self.delays[0] != 0 or min(self.delays) < 0:
            raise ValueError(f"expected {self.num_codebooks} delays, the first of them 0, got {self.delays}")

    @property
    def num_head_ids(self) -> int:
        """Number of text ids, from 0 on, that the text head predicts."""
        return self.num_text_ids

    @property
    def num_tables(self) -> int:
        """Number of codebooks in a row, including those of input-only streams."""
        return self.num_codebooks

    @property
    def vocab_size(self) -> int:
        return self.codes_end

    @property
    def codes_end(self) -> int:
        """Id that follows the ids of all codebooks."""
        return self.nothing + 1 + self.num_tables * (self.codebook_size + 1)

    @property
    def first_codes(self) -> tuple[int, ...]:
        """First id of each codebook. Input-only codebooks come last."""
        return tuple(range(self.nothing + 1, self.codes_end, self.codebook_size + 1))

    @property
    def initial_ids(self) -> tuple[int, ...]:
        """Id of text and of each codebook before its first frame."""
        return (self.initial_text, *(first + self.codebook_size for first in self.first_codes))

    def layout_with(self, delays: tuple[int, ...], num_input_only: int) -> StreamLayout:
        """Return the streams of a row, given the delays of the generated codebooks."""
        of_model = self.first_codes[: self.num_codebooks]
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(range(self.text_end), *(range(first, first + self.codebook_size) for first in of_model)),
            delays=(0, *delays),
            codebook_streams=tuple(range(1, 1 + self.num_codebooks)),
            num_input_only=num_input_only,
            initial=self.initial_ids[: 1 + self.num_codebooks],
            pad_id=self.nothing,
        )


@dataclass(frozen=True)
class MoshiVocabulary(FrameVocabulary):
    """Vocabulary of Moshi, in which the codebooks of the user's speech follow those of the model's speech."""

    num_text_ids: int = 32_000
    num_codebooks: int = 8
    codebook_size: int = 2048
    delays: tuple[int, ...] = (0, 1, 1, 1, 1, 1, 1, 1)
    max_model_len: int = 45_056  # an hour of live audio
    depth: DepthSpec = field(default=DEPTH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.delays) > MAX_DELAY:
            raise ValueError(f"expected delays of at most {MAX_DELAY} rows, got {self.delays}")

    @property
    def num_tables(self) -> int:
        return 2 * self.num_codebooks

    @property
    def user_ids_before(self) -> tuple[int, ...]:
        """Id of each user stream in the rows of a reply that precede the stream's first frame."""
        return self.initial_ids[1 + self.num_codebooks :]

    @property
    def layout(self) -> StreamLayout:
        """Streams of a row. The input-only ones carry the user's codes."""
        return self.layout_with(self.delays, self.num_codebooks)


def moshi(vocabulary: MoshiVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    num_generated = 1 + vocabulary.num_codebooks
    # Defaults of `LMGen`: `temp_text`, `top_k_text`, `temp` and `top_k`.
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(temperature=0.7, top_k=25, max_rows=vocabulary.max_model_len),
        depth=CodeSampling(temperature=0.8, top_k=250),
    )
    longest_s = (vocabulary.max_model_len - 4) / FRAME_RATE
    return Family(
        name=NAME,
        layout=vocabulary.layout,
        tasks=(Task("duplex", (Segment.AUDIO,), (), ("audio",), sampling),),
        codec="mimi",
        end_of_reply=vocabulary.end_of_reply,
        max_audio_s=max(1.0, min(MAX_AUDIO_S, float(int(longest_s)))),
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=2,
        steady_chunk_frames=12,
        tail=NO_TAIL,
        depth=vocabulary.depth,
        track=CodeTrack(range(num_generated, num_generated + vocabulary.num_codebooks)),
        has_text_beside_codes=True,
    )


build = builder(MoshiVocabulary, moshi)
