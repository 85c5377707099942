"""VALL-E (arXiv 2301.02111) as trained by ESPnet: the engine samples only the first codebook.

    tts     [sos][tts][text] words … [spk] 150 frames of a voice [codec] ─► c0 c1 c2 … [sos]

A prompt row has one stream per codebook. Frames of the voice have all their codes; other rows have an id and pads,
which have an embedding of their own. Rows of the reply have only the first codebook. Once the utterance has ended,
the decoder fills in the other codebooks from these rows and the prompt (`families/valle/refinement.py`), so a reply is
audible only after its end. Guidance was added by this server: the unconditional request contains neither words nor
voice. No published weights with this layout are known. Every recipe has its own vocabulary, which config.json contains
(`speech_vocabulary`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stretto.family.base import Family, Task, UnconditionalContext, Vocabulary
from stretto.family.mechanism import Mechanism
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

PAD = 0
SOS_EOS = 5
FRAME_RATE = 50.0


@dataclass(frozen=True)
class ValleVocabulary(Vocabulary):
    """Id ranges of text and codes.

    Attributes:
        vocab_size: Number of ids.
        text: First text id, and the id after the last text id.
        codec: First id of the first codebook; the other codebooks follow.
        num_codebooks: Number of codebooks.
        codebook_size: Number of codes per codebook.
        text_marker, voice_marker, codec_marker: Ids that precede text, voice and codes.
        task: Id of the task that speaks text in a given voice.
        voice_frames: Number of frames in a voice.
        max_model_len: Maximum number of rows.
    """

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
            raise ValueError(f"expected at least two codebooks with ids below vocab_size, got {self}")

    @property
    def nothing(self) -> int:
        """Id of an empty stream. It follows all other ids, and its embedding is zero."""
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


@dataclass(frozen=True)
class FilledCodebooks(Mechanism):
    """Codebooks that a second model fills in after the reply (`refinement.py`)."""

    number: int

    @property
    def num_filled_codebooks(self) -> int:
        """Number of codebooks that are not sampled."""
        return self.number


# Defaults of `SpeechLMInferenceOptions` (espnet2/speechlm/core_lm/abs_core_lm.py), with at most 30 s of audio. There is
# no guidance, because the model was not trained for it.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=20, min_rows=1, max_rows=1500),
)


def valle(vocabulary: ValleVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
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
        audio_head="plain",
        mechanism=FilledCodebooks(vocabulary.num_codebooks - 1),
    )


def build(name: str, vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family for a checkpoint's vocabulary."""
    return valle(ValleVocabulary.from_record(vocabulary) if vocabulary else ValleVocabulary())
