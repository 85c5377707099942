r"""Qwen3-ASR (Alibaba), which transcribes a recording and names its language.

    im_start system \n context im_end \n
    im_start user \n audio_start [audio] … [audio] audio_end im_end \n
    im_start assistant \n ─► language English asr_text … im_end

The backbone is Qwen3 with one stream. Rows of the recording are rows of the audio encoder (`log_mel_encoder.py`), 13 a
second. The ids come from `Qwen/Qwen3-ASR-1.7B`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stretto.family.base import Family, Languages, Task, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

NAME = "qwen3_asr"
FRAME_RATE = 12.5
MAX_MODEL_LEN = 16_384  # the longest recording and context, and the longest text
# Fields of the vocabulary, and their tokens.
MARKERS = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "text_end": "<|endoftext|>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "audio_pad": "<|audio_pad|>",
    "asr_text": "<asr_text>",
}
LANGUAGES = tuple(
    "chinese english cantonese arabic german french spanish portuguese indonesian italian korean russian thai "
    "vietnamese japanese turkish hindi malay dutch swedish danish finnish polish czech filipino persian greek romanian "
    "hungarian macedonian".split()
)


@dataclass(frozen=True)
class AsrVocabulary(Vocabulary):
    """Ids of Qwen3-ASR.

    Attributes:
        num_ids: Number of ids. The first ones are the tokenizer's tokens; the rest are unused.
        text_end: Id that ends a reply, as `im_end` does.
        audio_pad: Id of each row of a recording.
        asr_text: Id between the name of the language and the transcript.
        languages: Names of the languages in lower case.
    """

    num_ids: int = 151936
    im_start: int = 151644
    im_end: int = 151645
    text_end: int = 151643
    audio_start: int = 151669
    audio_end: int = 151670
    audio_pad: int = 151676
    asr_text: int = 151704
    languages: tuple[str, ...] = LANGUAGES
    max_model_len: int = MAX_MODEL_LEN

    @property
    def markers(self) -> Mapping[int, str]:
        """Names of the ids that structure a prompt or a reply. No context may contain them."""
        return {getattr(self, field): name for field, name in MARKERS.items()}


# The longest text depends on the recording (`TextRate`).
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0, max_rows=MAX_MODEL_LEN), audio=SegmentSampling(temperature=0.0)
)


def qwen3_asr(vocabulary: AsrVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    everything = (range(vocabulary.num_ids),)
    return Family(
        name=NAME,
        layout=StreamLayout.of_text(vocabulary.num_ids, vocabulary.im_end),
        tasks=(Task("asr", (Segment.TEXT,), everything, ("audio",), SAMPLING, system=("text",)),),
        codec="soundless",
        end_of_reply=vocabulary.im_end,
        drawn_ends=(vocabulary.im_end, vocabulary.text_end),
        languages=Languages(vocabulary.languages),
        options=("beginning",),
        max_text_chars=8_000,
        max_audio_s=300.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
    )


build = builder(AsrVocabulary, qwen3_asr)
