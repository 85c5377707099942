"""VALL-E (arXiv 2301.02111) as ESPnet trains it: the first codebook is drawn here, the others are filled in behind.

    tts     [sos][tts][text] words … [spk] 150 frames of a voice [codec] ─► c0 c1 c2 … [sos]

A row of the prompt has a stream for each codebook: frames all their codes, other rows an id and pads, which have an
embedding of their own. Rows of the reply carry the first codebook alone; what the others say is not drawn row by row:
it is filled in of the whole utterance where it is decoded (`codec/refinement/valle.py`), from these rows and the
prompt's. So a reply sounds when it has ended. Guidance is ours: the other half hears neither words nor voice. No
weights are known to be published in this layout: every recipe has a vocabulary of its own, which config.json says
(`speech_vocabulary`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stretto.families.base import Family, Task, UnconditionalContext
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import StreamLayout
from stretto.streams.pattern import NO_TAIL
from stretto.streams.segment import Segment

PAD, SOS_EOS = 0, 5
FRAME_RATE = 50.0


@dataclass(frozen=True)
class ValleVocabulary:
    """Where each kind of id lies. codec: first id of the first codebook; the others follow. text_marker, voice_marker,
    codec_marker: what stands before each; task: of speech for a text and a voice. voice_frames: of a voice."""

    vocab_size: int = 58752
    text: tuple[int, int] = (8448, 58752)
    codec: int = 256
    num_codebooks: int = 8
    codebook_size: int = 1024
    text_marker: int = 35
    voice_marker: int = 37
    codec_marker: int = 32
    task: int = 67
    voice_frames: int = 150
    max_model_len: int = 3000

    def __post_init__(self) -> None:
        if self.num_codebooks < 2 or not self.codec + self.num_codebooks * self.codebook_size <= self.vocab_size:
            raise ValueError(f"expected two codebooks or more below vocab_size, got {self}")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ValleVocabulary":
        """From `speech_vocabulary` in config.json."""
        return cls(**{**record, "text": tuple(record["text"])})

    def to_record(self) -> dict[str, Any]:
        """The inverse of `from_record`."""
        return asdict(self)

    @property
    def nothing(self) -> int:
        """What streams carry that say nothing at all: an id of ours behind all others, whose embedding is zero."""
        return self.vocab_size

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.vocab_size + 1,
            audio=(range(self.codec, self.codec + self.codebook_size),),
            delays=(0,),
            codebook_streams=(0,),
            num_input_only=self.num_codebooks - 1,
            pad_id=self.nothing,
        )


# The defaults of `SpeechLMInferenceOptions` (espnet2/speechlm/core_lm/abs_core_lm.py); at most 30 s, and no guidance,
# which it was not trained for.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=20, min_rows=1, max_rows=1500),
)


def valle(vocabulary: ValleVocabulary) -> Family:
    """The family."""
    return Family(
        name="valle",
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, system=("audio",)),),
        codec="espnet_dac",
        end_of_reply=SOS_EOS,
        end_of_text=SOS_EOS,
        end_of_audio=SOS_EOS,
        transition=(),
        guided_streams=(0,),
        unconditional=UnconditionalContext(null_id=vocabulary.nothing, keep_first=2, keep_last=1),
        max_text_chars=4000,
        max_audio_s=30.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        tail=NO_TAIL,
        subwords=range(*vocabulary.text),
        markers={
            "text": vocabulary.text_marker,
            "voice": vocabulary.voice_marker,
            "codec": vocabulary.codec_marker,
            "task": vocabulary.task,
        },
        has_audio_head=True,
        num_filled_codebooks=vocabulary.num_codebooks - 1,
    )


def build(name: str, vocabulary: Mapping[str, Any] | None) -> Family:
    """The family over a checkpoint's vocabulary."""
    return valle(ValleVocabulary.from_record(vocabulary) if vocabulary else ValleVocabulary())
