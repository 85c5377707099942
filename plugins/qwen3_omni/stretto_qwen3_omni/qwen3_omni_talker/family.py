r"""Qwen3-Omni talker (Alibaba): Qwen3-TTS rows, streams and depth transformer over a mixture-of-experts backbone.

    text    users' turns  im_start assistant \n  pad     pad       pad       pad   bos Hello │ ,  eos pad …
    codec                                      nothink think_bos think_eos voice pad bos   │ f0 f1  f2  …

A thinker generates the text of the reply. The talker reads the user turns, and then this text, one token per frame.
Text is given as ids, because the talker's table already contains the thinker's embeddings after the talker's projection
(`convert.py`). For the thinker's audio input and images, the talker receives hidden states of one of the thinker's
layers, one per row. Rows of images have three positions, as in the thinker. The thinker is the family `qwen3_omni`,
which serves both. The numbers come from `Qwen/Qwen3-Omni-30B-A3B-Instruct`; a checkpoint's config.json may override
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stretto.families.qwen3_tts.family import DEPTH, Qwen3TtsVocabulary, qwen3_tts
from stretto.family.base import DepthSpec, Family, Task
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment

NAME = "qwen3_omni_talker"


@dataclass(frozen=True)
class TalkerVocabulary(Qwen3TtsVocabulary):
    """Vocabulary of the talker: Qwen3-TTS codec ids and the thinker's text ids, without languages.

    Attributes:
        heard: Id of audio input in the thinker's prompt. In rows with this id, the talker reads hidden states.
        seen: Ids of images and of video in the thinker's prompt. In rows of images, the talker reads hidden states.
            Video is rejected.
    """

    num_text_ids: int = 152064
    languages: Mapping[str, int] = field(default_factory=dict, hash=False)
    speakers: Mapping[str, int] = field(
        default_factory=lambda: {"chelsie": 2301, "ethan": 2302, "aiden": 2303}, hash=False
    )
    dialects: Mapping[str, str] = field(default_factory=dict, hash=False)
    depth: DepthSpec = field(default_factory=lambda: replace(DEPTH, projection=None))
    heard: int = 151675
    max_model_len: int = 65536
    seen: tuple[int, int] = (151655, 151656)


# Defaults of `generate` for the whole model in transformers, including the defaults for codes after the first.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.9, top_k=50, max_rows=4095),
    repetition_penalty=1.05,
    depth=CodeSampling(1.0, 50, 0.8),
)


def qwen3_omni_talker(vocabulary: TalkerVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    like = qwen3_tts(vocabulary)
    assert like.text_track is not None
    return replace(
        like,
        name=NAME,
        tasks=(Task("speak", (Segment.AUDIO,), (), ("text",), SAMPLING),),
        codec="qwen3_omni",
        options=(),
        track=replace(like.text_track, is_usual=True),
    )


def build(vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family for a vocabulary; None selects the published one."""
    return qwen3_omni_talker(TalkerVocabulary.from_record(vocabulary) if vocabulary else TalkerVocabulary())
