"""The talker of Qwen3-Omni (Alibaba): Qwen3-TTS's rows, streams and depth transformer over a backbone of experts.

    text    users' turns  im_start assistant \\n  pad     pad       pad       pad   bos Hello │ ,  eos pad …
    codec                                      nothink think_bos think_eos voice pad bos   │ f0 f1  f2  …

A thinker writes the reply, which the talker reads word by word beside its frames, behind users' turns. Of text it is
given the ids, as the thinker's table of embeddings and what the talker puts it through are in its own table
(`convert.py`); where the thinker heard, it is given rows: the hidden states of one of the thinker's layers. There is no
thinker here. Numbers are those of `Qwen/Qwen3-Omni-30B-A3B-Instruct`; config.json says what holds for a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stretto.families.base import Family, Task
from stretto.families.qwen3_tts.family import DEPTH, Qwen3TtsVocabulary, qwen3_tts
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.segment import Segment

NAME = "qwen3_omni_talker"
NOT_SERVED = "speaks what a thinker says, and there is none here: it is driven through SpeechLLM (docs/families.md)"


@dataclass(frozen=True)
class TalkerVocabulary(Qwen3TtsVocabulary):
    """As Qwen3-TTS's, over the thinker's ids of text, without languages.

    heard: the thinker's id where it heard audio, for which the talker is given rows. seen: its ids of images and of
    video, whose rows would need positions in three dimensions.
    """

    num_text_ids: int = 152064
    languages: Mapping[str, int] = field(default_factory=dict, hash=False)
    speakers: Mapping[str, int] = field(
        default_factory=lambda: {"chelsie": 2301, "ethan": 2302, "aiden": 2303}, hash=False
    )
    dialects: Mapping[str, str] = field(default_factory=dict, hash=False)
    depth: Any = field(default_factory=lambda: replace(DEPTH, projection=None))
    heard: int = 151675
    seen: tuple[int, ...] = (151655, 151656)


# As the whole model's `generate` in transformers has it, and what it draws the codes behind the first with.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.9, top_k=50, max_rows=4095),
    repetition_penalty=1.05,
    depth=CodeSampling(1.0, 50, 0.8),
)


def qwen3_omni_talker(vocabulary: TalkerVocabulary) -> Family:
    """The family."""
    like = qwen3_tts(vocabulary)
    assert like.text_track is not None
    return replace(
        like,
        name=NAME,
        tasks=(Task("speak", (Segment.AUDIO,), (), ("text",), SAMPLING),),
        codec="qwen3_omni",
        takes_instructions=False,
        text_track=replace(like.text_track, is_usual=True),
        not_served=NOT_SERVED,
    )


def build(name: str, vocabulary: Mapping[str, Any] | None) -> Family:
    """The family over a checkpoint's vocabulary, by default the published one's."""
    return qwen3_omni_talker(TalkerVocabulary.from_record(vocabulary) if vocabulary else TalkerVocabulary())
