"""Magpie TTS (NVIDIA): a decoder over frames of codes, which cross-attends to the encoded text of its request.

    stream 0        voice rows  .    │ 1   1   2   4   end      position of the text that the row before attended to
    stream 1        .           bos  │ a0  a1  a2  a3  .        codebook 0 of the first frame of a row
    …
    stream 8 F      .           bos  │ h0  h1  h2  h3  .        codebook 7 of its last frame; a row has F frames

The first rows are vectors that the checkpoint has for each voice. The attention to the text is multiplied by a prior,
which follows the position attended to. Stream 0 of a reply carries that position, so a reply is the same after a
preemption. The local transformer samples the codes of a row one after the other. A reply ends with a row in which a
code is the end id, or would be by the decoder's own heads. In the unconditional request of a CFG pair, the voice rows
are zeros and there is no text. The numbers come from `nvidia/magpie_tts_multilingual_357m` (v2607); a checkpoint's
config.json may override them (`speech_vocabulary`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, ClassVar

from pydantic import Field

from stretto.errors import InvalidRequest, shown
from stretto.family.base import (
    DepthSpec,
    DrawRules,
    Family,
    Languages,
    Task,
    UnconditionalContext,
    Vocabulary,
    builder,
)
from stretto.family.mechanism import Mechanism, RequestConditions
from stretto.family.plugin import lazy
from stretto.records.prompt import Condition
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

NAME = "magpie"
CODEC_FRAME_RATE = 22_050 / 1024
MAX_STREAMS = 64  # codebooks of a frame, and frames of a row
MAX_TEXT_TOKENS = 512  # the authors split longer texts
NORM_EPS = 1e-5  # epsilon of all norms in the authors' code
BIAS_COLUMNS = 16  # biases of a head, then zeros that keep the rows of its weights aligned


@dataclass(frozen=True)
class LocalSpec(DepthSpec):
    """Hyperparameters of the local transformer: LayerNorm, learnt positions, and an MLP without a gate."""

    network: ClassVar = lazy(f"{__package__}.model:LocalTransformer")


LOCAL = LocalSpec(
    hidden=768,
    intermediate=3072,
    num_layers=2,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    eps=NORM_EPS,
    projection=None,
)


@dataclass(frozen=True)
class EncoderSpec:
    """Hyperparameters of the text encoder, which has the width of the decoder."""

    num_layers: int = 6
    num_heads: int = 12
    intermediate: int = 3072
    kernel_size: int = 3
    is_causal: bool = True


@dataclass(frozen=True)
class PriorSpec:
    """Prior of the decoder's attention to the text.

    Attributes:
        epsilon: Factor of the attention to positions outside the window.
        window: Number of positions of the window after the one attended to. The window also contains that position and
            the one before it. The next position is searched among `window` positions, beginning with that position.
        read_layers: Decoder layers whose mean attention determines the position attended to.
    """

    epsilon: float = 0.1
    window: int = 5
    layers: tuple[int, ...] = tuple(range(12))
    read_layers: tuple[int, ...] = tuple(range(12))


@dataclass(frozen=True)
class MagpieVocabulary(Vocabulary):
    """Positions of the text, three further ids, the voices' rows, and the ids of each codebook.

    Attributes:
        num_text_ids: Number of ids of text tokens, the last of which ends a text.
        num_codebooks: Number of codebooks of a codec frame.
        frames_per_row: Number of codec frames in a row.
        voice_rows: Number of rows of each voice.
        cross_heads, cross_head_dim: Heads of the attention to the text.
        prior: None if the release is used without one.
    """

    num_text_ids: int = 3359
    num_codebooks: Annotated[int, Field(ge=1, le=MAX_STREAMS)] = 8
    codebook_size: int = 2016
    frames_per_row: Annotated[int, Field(ge=1, le=MAX_STREAMS)] = 2
    voices: tuple[str, ...] = ("aria", "jason", "john", "leo", "sofia")
    languages: tuple[str, ...] = ("en", "es", "de", "fr", "it", "vi", "ko", "pt-br", "hi")
    voice_rows: int = 217
    max_text_tokens: int = MAX_TEXT_TOKENS
    max_model_len: int = 2048
    cross_heads: int = 1
    cross_head_dim: int = 128
    hidden: int = 768
    encoder: EncoderSpec = EncoderSpec()
    prior: PriorSpec | None = PriorSpec()
    depth: LocalSpec = field(default=LOCAL)
    temperature: float = 0.6
    top_k: int = 80
    guidance_scale: float = 2.5
    min_frames: int = 4
    max_frames: int = 500

    @property
    def no_prior(self) -> int:
        """Id of stream 0 in rows whose attention has no prior. Smaller ids are positions of the text."""
        return self.max_text_tokens

    @property
    def end(self) -> int:
        return self.no_prior + 1

    @property
    def nothing(self) -> int:
        """Id of an empty stream, whose embedding is zero. Stream 0 has it in all rows of unconditional requests."""
        return self.end + 1

    @property
    def first_voice(self) -> int:
        return self.nothing + 1

    @property
    def num_streams(self) -> int:
        return self.num_codebooks * self.frames_per_row

    @property
    def starts(self) -> range:
        """First id of each code of a row. The end id and the initial id follow the codes."""
        size = self.codebook_size + 2
        first = self.first_voice + len(self.voices) * self.voice_rows
        return range(first, first + self.num_streams * size, size)

    @property
    def layout(self) -> StreamLayout:
        size = self.codebook_size
        starts = self.starts
        return StreamLayout(
            vocab_size=starts.stop,
            audio=(range(self.no_prior + 1), *(range(start, start + size) for start in starts)),
            delays=(0,) * (1 + len(starts)),
            codebook_streams=tuple(range(1, 1 + len(starts))),
            pad_id=self.nothing,
            extra=((), *((start + size,) for start in starts)),
            initial=(self.no_prior, *(start + size + 1 for start in starts)),
        )


@dataclass(frozen=True)
class TextConditions(RequestConditions):
    """Text of a request, encoded for the cross-attention of its rows. A condition contains its token ids.

    Attributes:
        num_ids: Number of ids of text tokens.
        hidden_id: Id of stream 0 in rows that do not attend to the text.
        vector_rows: Memory for the keys of the longest text, as a number of keys of the decoder's width.
        num_heads, head_dim: Heads of the attention to the text.
    """

    num_ids: int
    hidden_id: int
    max_tokens: int
    vector_rows: int
    num_heads: int
    head_dim: int
    encoder: EncoderSpec
    prior: PriorSpec | None
    guidance_scales: tuple[float, ...] = ()  # replies are guided by CFG pairs
    max_voices: int = 1

    network: ClassVar = lazy(f"{__package__}.mechanism.model:TextNetwork")
    layer: ClassVar = lazy(f"{__package__}.mechanism.model:layer")

    def check(self, condition: Condition) -> None:
        """Raise InvalidRequest if a request's text has too many tokens, or tokens without embeddings."""
        ids = condition.ids
        if not 1 <= len(ids) <= self.max_tokens or not all(0 <= token < self.num_ids for token in ids):
            expected = f"1 to {self.max_tokens} ids in [0, {self.num_ids})"
            raise InvalidRequest("condition.ids", expected, shown(list(ids)))
        if condition.vectors.size:
            raise InvalidRequest("condition.vectors", "no vectors", f"{len(condition.vectors)}")


@dataclass(frozen=True)
class AttendedText(DrawRules):
    """Rules that set stream 0 to the position of the text that a row attends to, and that end a reply.

    Attributes:
        num_codes: Number of codes of a codebook. The end id follows them.
        window: See `PriorSpec`; 0 without a prior.
    """

    num_codes: int
    window: int

    ends_audio: ClassVar[bool] = True
    computes_first: ClassVar[bool] = True
    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:AttendedDraw")

    def sampled_ids(self, ids: Sequence[int]) -> list[int]:
        """Return only the last of the ids, because stream 0 is not sampled."""
        return [*ids[-1:]]


def magpie(vocabulary: MagpieVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    layout = vocabulary.layout
    per_row = vocabulary.frames_per_row
    codes = CodeSampling(vocabulary.temperature, vocabulary.top_k)
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(
            codes.temperature,
            codes.top_k,
            min_rows=ceil(vocabulary.min_frames / per_row),
            max_rows=vocabulary.max_frames // per_row,
        ),
        guidance_scale=vocabulary.guidance_scale,
    )
    conditions = TextConditions(
        num_ids=vocabulary.num_text_ids,
        hidden_id=vocabulary.nothing,
        max_tokens=vocabulary.max_text_tokens,
        vector_rows=ceil(
            vocabulary.max_text_tokens * vocabulary.cross_heads * vocabulary.cross_head_dim / vocabulary.hidden
        ),
        num_heads=vocabulary.cross_heads,
        head_dim=vocabulary.cross_head_dim,
        encoder=vocabulary.encoder,
        prior=vocabulary.prior,
    )
    return Family(
        name=NAME,
        layout=layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), sampling),),
        codec="nanocodec",
        end_of_reply=vocabulary.end,
        guided_streams=layout.codebook_streams,
        unconditional=UnconditionalContext(vocabulary.nothing, keep_first=0, keep_last=0, hidden_streams=(0,)),
        voices=vocabulary.voices,
        languages=Languages(vocabulary.languages),
        max_text_chars=vocabulary.max_text_tokens - 1,
        max_model_len=vocabulary.max_model_len,
        frame_rate=CODEC_FRAME_RATE / per_row,
        first_chunk_frames=2,
        steady_chunk_frames=ceil(21 / per_row),
        tail=NO_TAIL,
        depth=vocabulary.depth,
        drawing=AttendedText(
            num_codes=vocabulary.codebook_size,
            window=0 if vocabulary.prior is None else vocabulary.prior.window,
        ),
        mechanism=Mechanism(conditions=conditions),
    )


build = builder(MagpieVocabulary, magpie)
