r"""Qwen3-Omni (Alibaba): the thinker, which answers text and audio with text.

    im_start system \n You are … im_end \n
    im_start user \n audio_start [audio] … [audio] audio_end What is this? im_end \n
    im_start assistant \n ─► reply im_end

The backbone is Qwen3-MoE with one stream. Rows of audio input are rows of the audio encoder (`log_mel_encoder.py`).
Rows of images have positions in three dimensions (`positions_of`), which are equal for text and audio, as in
transformers (`get_rope_index`). The numbers come from `Qwen/Qwen3-Omni-30B-A3B-Instruct`; a checkpoint's config.json
may override them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from stretto.family.base import DrawRules, Family, Task, Vocabulary, builder
from stretto.family.mechanism import Mechanism, Speaker
from stretto.family.plugin import lazy
from stretto.family.served import SpokenTask
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout
from stretto_contract.voice_details import VoiceDetails

NAME = "qwen3_omni"
MECHANISM = f"{__package__}.mechanism"
FRAME_RATE = 12.5  # of the talker's codec
# The authors' table of voices, https://github.com/QwenLM/Qwen3-Omni.
VOICE_DETAILS = {
    "ethan": VoiceDetails(gender="male", description="bright, energetic and friendly"),
    "chelsie": VoiceDetails(gender="female", description="smooth, soft and clear"),
    "aiden": VoiceDetails("en-US", "male", "warm, relaxed and boyish"),
}


@dataclass(frozen=True)
class ThinkerVocabulary(Vocabulary):
    """Ids of the thinker.

    Attributes:
        num_ids: Number of ids. The first ones are the tokenizer's tokens; the rest are unused.
        audio_pad: Id of each row of a recording.
        voices: Names of the talker's voices in lower case; empty without a talker.
        state_layer: Layer whose hidden states the talker reads in rows of recordings and images
            (`accept_hidden_layer`).
    """

    num_ids: int = 152064
    im_start: int = 151644
    im_end: int = 151645
    audio_start: int = 151669
    audio_end: int = 151670
    audio_pad: int = 151675
    image_start: int = 151652
    image_end: int = 151653
    image_pad: int = 151655
    voices: tuple[str, ...] = ("ethan", "chelsie", "aiden")
    state_layer: int = 24
    max_model_len: int = 65536

    @property
    def markers(self) -> Mapping[int, str]:
        """Names of the ids that structure a prompt. No text may contain them."""
        return {
            self.im_start: "<|im_start|>",
            self.im_end: "<|im_end|>",
            self.audio_start: "<|audio_start|>",
            self.audio_end: "<|audio_end|>",
            self.audio_pad: "<|audio_pad|>",
            self.image_start: "<|vision_start|>",
            self.image_end: "<|vision_end|>",
            self.image_pad: "<|image_pad|>",
        }


@dataclass(frozen=True)
class Talker(Speaker):
    """The talker, which speaks the thinker's text.

    Attributes:
        state_layer: Decoder layer of the thinker whose input the talker reads in the rows of audio input and images,
            counted as in transformers' `hidden_states`: 0 for the embedded rows.
    """

    state_layer: int

    folder: ClassVar = "talker"
    launch: ClassVar = lazy(f"{MECHANISM}.spoken_llm:SpokenLLM.launch")
    extend: ClassVar = lazy(f"{MECHANISM}.prompt_states:keep_states")
    send_states: ClassVar = lazy(f"{MECHANISM}.prompt_states:PromptStates")
    collect_states: ClassVar = lazy(f"{MECHANISM}.state_rows:StateRows.of_prompt")


# Defaults of `generate` for the whole model in transformers: greedy, at most 1024 tokens.
SAMPLING = SamplingConfig(text=SegmentSampling(temperature=0.0, max_rows=1024), audio=SegmentSampling(temperature=0.0))


def qwen3_omni(vocabulary: ThinkerVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    everything = (range(vocabulary.num_ids),)
    chat = Task(
        "chat",
        (Segment.TEXT,),
        everything,
        (),
        SAMPLING,
        also=("text", "audio", "image"),
        has_history=True,
        system=("text",),
    )
    dialogue = SpokenTask(**vars(chat) | {"name": "dialogue"})
    return Family(
        name=NAME,
        layout=StreamLayout.of_text(vocabulary.num_ids, vocabulary.im_end),
        tasks=(chat, dialogue) if vocabulary.voices else (chat,),
        codec="qwen3_omni" if vocabulary.voices else "soundless",
        end_of_reply=vocabulary.im_end,
        voices=vocabulary.voices,
        voice_details=VOICE_DETAILS,
        max_text_chars=32_000,
        max_audio_s=120.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        subwords=everything[0],
        drawing=DrawRules(penalized="all"),
        mechanism=Mechanism(speaker=Talker(vocabulary.state_layer) if vocabulary.voices else None),
    )


build = builder(ThinkerVocabulary, qwen3_omni)
