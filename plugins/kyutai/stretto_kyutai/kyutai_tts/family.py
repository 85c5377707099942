"""Kyutai TTS: a row carries a text token, and a frame of speech that follows the text after a fixed delay D.

    stream 0        begin  -   -    PAD  new  w0  w0' PAD  new  w1 …   the words of the text, as the model asks for them
    stream 1        begin  -   …    v0   v1   …   a0  a1  a2  …        codebook 0: frame i, D rows after text i
    streams 2 … K   begin  begin …  -    -    v0  v1  …   a0  a1  …    its other codebooks, later by the delay of each
    stream K + 1    -                                                  the word after the next, in the 1.6B model

`v` are frames of a recording of the voice, whose text is empty: the prompt. The model samples a text id in each row, of
which only one counts: it asks for the next word. Audio frame i is spoken at the time of text i, so the rows in which
words begin are word times. Guidance compares with a request that sees neither the text nor the recording.

Replies of `kyutai/tts-1.6b-en_fr` have conditions instead: vectors of up to five voices, which all rows attend to, and
a vector of the guidance scale, which is added to all rows. Their prompt is the first row.

Delayed streams modeling: https://arxiv.org/abs/2509.08753. Where a number is published only in the config.json of
`kyutai/tts-0.75b-en-public`, the default is that of `kyutai/tts-1.6b-en_fr`; conversion writes the release's own.
"""

from dataclasses import dataclass, field, replace
from math import prod

from stretto.family.base import (
    DepthSpec,
    Family,
    Task,
    UnconditionalContext,
    builder,
)
from stretto.family.mechanism import Mechanism
from stretto.records.prompt import MAX_CONDITION_BYTES
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout
from stretto_kyutai.kyutai_stt.family import FRAME_RATE, PAD
from stretto_kyutai.kyutai_tts.mechanism.script import ScriptedText, WordScript
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions
from stretto_kyutai.moshi.family import FrameVocabulary

NAME = "kyutai_tts"
NEW_WORD = 0  # text id with which the model asks for a word
# rows, as in the authors' `TTSModel`
MAX_PADDING = 8
INITIAL_PADDING = 2
FINAL_PADDING = 4
MAX_TEXT_CHARS = 5000
MAX_VOICE_S = 30.0
MAX_DELAY = 64
# words; voices of a reply
MAX_AHEAD = 8
MAX_VOICES = 5
# Vectors of a voice, and numbers in them. A prompt has the vectors of up to MAX_VOICES voices.
MAX_VECTORS = 1024
MAX_NUMBERS = MAX_CONDITION_BYTES // (4 * MAX_VOICES)
GUIDANCE_SCALE = 2.0
END_OF_WORDS = 0  # after packed words, which begin with 1 or more
DEPTH = DepthSpec(
    hidden=1024,
    intermediate=2048,
    num_layers=4,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    eps=1e-8,
    schedule=(*range(8), *[8] * 8),
)


@dataclass(frozen=True)
class TtsVocabulary(FrameVocabulary):
    """Ids of text, four ids of our own, and each codebook's codes with its initial id.

    Attributes:
        num_codebooks: Number of codebooks of the speech, K.
        delays: Delay of each codebook in rows; that of the first is 0.
        delay_rows: Rows by which the speech follows the text, D.
        voices: Names of the voices, of which the checkpoint has recordings or vectors.
        num_sampled: Number of text ids, from 0 on, that the text head predicts; 0 for all.
        ahead: Number of words by which the second text stream is ahead; 0 without such a stream.
        voice_shape: Number of vectors of a voice, and their width; None if voices are recordings.
        guidance_scales: Guidance scales that the model has a vector for; empty if it is guided by CFG pairs.
    """

    num_text_ids: int = 8000
    num_codebooks: int = 16
    codebook_size: int = 2048
    delays: tuple[int, ...] = (0, *[2] * 15)
    max_model_len: int = 4096
    depth: DepthSpec = field(default=DEPTH)
    delay_rows: int = 16
    voices: tuple[str, ...] = ()
    num_sampled: int = 0
    ahead: int = 0
    voice_shape: tuple[int, int] | None = None
    guidance_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.delay_rows <= MAX_DELAY or max(self.delays) > MAX_DELAY:
            raise ValueError(f"expected delays of at most {MAX_DELAY} rows, got {self.delay_rows} and {self.delays}")
        if self.num_sampled and not PAD < self.num_sampled <= self.num_text_ids:
            raise ValueError(f"num_sampled: expected {PAD + 1} to {self.num_text_ids}, got {self.num_sampled}")
        if not 0 <= self.ahead <= MAX_AHEAD:
            raise ValueError(f"ahead: expected 0 to {MAX_AHEAD} words, got {self.ahead}")
        if (self.voice_shape is None) != (not self.guidance_scales) or (self.voice_shape and min(self.voice_shape) < 1):
            raise ValueError(f"expected vectors of voices and guidance scales, or neither, got {self}")
        if self.voice_shape and (self.voice_shape[0] > MAX_VECTORS or prod(self.voice_shape) > MAX_NUMBERS):
            expected = f"voices of at most {MAX_VECTORS} vectors and {MAX_NUMBERS} numbers"
            raise ValueError(f"expected {expected}, got {self.voice_shape}")

    @property
    def wish_id(self) -> int:
        """Text id of a row in which the model asked for a word and got a break or nothing, embedded like PAD."""
        return self.num_text_ids

    @property
    def num_head_ids(self) -> int:
        return self.num_sampled or self.num_text_ids

    @property
    def text_end(self) -> int:
        return self.wish_id + 1

    @property
    def vocab_size(self) -> int:
        return self.codes_end + (self.num_text_ids if self.ahead else 0)

    @property
    def row_delays(self) -> tuple[int, ...]:
        """Delay of each codebook behind the text, in rows."""
        return tuple(self.delay_rows + delay for delay in self.delays)

    @property
    def script(self) -> WordScript:
        """Rules by which the model requests the next word of the text."""
        return WordScript(
            new_id=NEW_WORD,
            pad_id=PAD,
            wish_id=self.wish_id,
            max_padding=MAX_PADDING,
            ahead=self.ahead,
            second_base=self.codes_end,
            initial_padding=INITIAL_PADDING,
            tail_rows=FINAL_PADDING + max(self.row_delays),
            num_sampled=self.num_sampled,
        )

    @property
    def conditions(self) -> SpeakerConditions | None:
        """Sizes of the conditions: guidance scale, `control_id` and voices; None if voices are recordings."""
        if self.voice_shape is None:
            return None
        num_vectors, width = self.voice_shape
        return SpeakerConditions(self.control_id + 1, MAX_VOICES * num_vectors, width, self.guidance_scales, MAX_VOICES)

    @property
    def has_turns(self) -> bool:
        """True if the first word of a turn begins with the id of its speaker."""
        return self.voice_shape is not None

    @property
    def control_id(self) -> int:
        """Id of the vector that is added to all rows of every reply (the condition `control`)."""
        return len(self.guidance_scales)

    @property
    def layout(self) -> StreamLayout:
        """Streams of a row. The last one has the second text, and is empty in a model without it."""
        return self.layout_with(self.row_delays, num_input_only=1)


def kyutai_tts(vocabulary: TtsVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    # Defaults of `TTSModel` and `simple_generate`; top-k values of `LMGen`.
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(temperature=0.6, top_k=25, max_rows=vocabulary.max_model_len),
        depth=CodeSampling(temperature=0.6, top_k=250),
        guidance_scale=1.0 if vocabulary.conditions else GUIDANCE_SCALE,
    )
    second = 1 + vocabulary.num_codebooks
    system = () if vocabulary.conditions else ("audio",)
    return Family(
        name=NAME,
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), sampling, system=system),),
        codec="mimi",
        end_of_reply=vocabulary.end_of_reply,
        guided_streams=() if vocabulary.conditions else tuple(range(1, second)),
        unconditional=UnconditionalContext(vocabulary.nothing, keep_first=1, keep_last=0, hidden_streams=(0, second)),
        tags=("<break>",),
        voices=vocabulary.voices,
        max_text_chars=MAX_TEXT_CHARS,
        max_audio_s=MAX_VOICE_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=2,
        steady_chunk_frames=12,
        tail=NO_TAIL,
        depth=replace(vocabulary.depth, num_second_ids=vocabulary.num_text_ids if vocabulary.ahead else 0),
        track=ScriptedText(
            second,
            vocabulary.nothing,
            END_OF_WORDS,
            is_usual=True,
            script=vocabulary.script,
        ),
        drawing=vocabulary.script,
        mechanism=Mechanism(conditions=vocabulary.conditions),
    )


build = builder(TtsVocabulary, kyutai_tts)
