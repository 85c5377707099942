r"""VibeVoice-ASR (Microsoft, https://github.com/microsoft/VibeVoice): transcripts with speakers and times.

    im_start system \n You are … im_end \n
    im_start user \n begin [audio] … [audio] end \n This is a 7.20 seconds audio, … im_end \n
    ─► im_start assistant \n [{"Start":0,"End":3.4,"Speaker":0,"Content":"Good morning."}, … ] im_end \n end_of_reply

The backbone is Qwen2.5 with one stream. A row of the recording is an acoustic latent and semantic features of 3,200
samples, each projected to the width of the backbone, and added. The ids come from `microsoft/VibeVoice-ASR-HF`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stretto.family.audio_format import AudioFormat
from stretto.family.base import Family, Task, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

NAME = "vibevoice_asr"
TIMES_PER_S = 100.0  # the model writes times in hundredths of a second
MAX_AUDIO_S = 3600.0
MAX_MODEL_LEN = 65_536  # 27,000 rows of an hour, and its text
# Fields of the vocabulary, and their tokens.
MARKERS = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "end_of_reply": "<|endoftext|>",
    "begin": "<|object_ref_start|>",
    "end": "<|object_ref_end|>",
    "audio": "<|box_start|>",
}


@dataclass(frozen=True)
class AsrVocabulary(Vocabulary):
    """Ids of VibeVoice-ASR.

    Attributes:
        num_ids: Number of ids. The first ones are the tokenizer's tokens; the rest are unused.
        begin: Id before a recording.
        end: Id after a recording.
        audio: Id of each row of a recording.
    """

    num_ids: int = 152064
    im_start: int = 151644
    im_end: int = 151645
    end_of_reply: int = 151643
    begin: int = 151646
    end: int = 151647
    audio: int = 151648
    max_model_len: int = MAX_MODEL_LEN

    @property
    def markers(self) -> Mapping[int, str]:
        """Names of the ids that structure a prompt or a reply. No context may contain them."""
        return {getattr(self, field): name for field, name in MARKERS.items()}


@dataclass(frozen=True, slots=True)
class FeatureFormat(AudioFormat):
    """Format of recordings: acoustic latents beside semantic features, one vector per row."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "FeatureFormat":
        """Return the format for an `audio_config`, which has the sizes of both."""
        return cls(record["acoustic_size"] + record["semantic_size"])

    def num_rows(self, num_frames: int) -> int:
        """Return `num_frames`, because each vector is one row."""
        return num_frames


# The longest text depends on the recording (`TextRate`).
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0, max_rows=MAX_MODEL_LEN), audio=SegmentSampling(temperature=0.0)
)


def vibevoice_asr(vocabulary: AsrVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    everything = (range(vocabulary.num_ids),)
    return Family(
        name=NAME,
        layout=StreamLayout.of_text(vocabulary.num_ids, vocabulary.im_end),
        tasks=(Task("asr", (Segment.TEXT,), everything, ("audio",), SAMPLING, system=("text",)),),
        codec=NAME,
        end_of_reply=vocabulary.end_of_reply,
        max_text_chars=8_000,
        max_audio_s=MAX_AUDIO_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=TIMES_PER_S,
    )


build = builder(AsrVocabulary, vibevoice_asr)
