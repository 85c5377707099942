r"""Qwen3-TTS 12 Hz (Alibaba): Qwen3 over rows that carry both text and codes, with a depth transformer per frame.

    text    im_start assistant \n  pad    pad       pad      pad       pad   bos  Hello , eos  pad │ pad  pad  pad …
    codec                           think think_bos language think_eos voice pad   pad  … pad  bos │ f0   f1   f2 …

A row is the sum of a text embedding and the embeddings of the codec streams: a marker on stream 0, or a frame of 16
codes. The backbone samples the first code of a frame, or the end id. The depth transformer samples the other codes one
by one. Text is an input-only stream after the codebooks; once the text has ended, this stream carries `tts_pad`. The
text table already includes the talker's projection (`convert.py`). The numbers come from
`Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice`; a checkpoint's config.json may override them (`speech_vocabulary`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stretto.family.base import DepthSpec, DrawRules, Family, Languages, Task, Vocabulary, builder
from stretto.family.input_tracks import TextTrack
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout
from stretto_contract.voice_details import VoiceDetails

Kind = Literal["custom_voice", "voice_design", "base"]
FRAME_RATE = 12.5
LANGUAGES = {
    "chinese": 2055,
    "english": 2050,
    "german": 2053,
    "italian": 2070,
    "portuguese": 2071,
    "spanish": 2054,
    "japanese": 2058,
    "korean": 2064,
    "french": 2061,
    "russian": 2069,
    "beijing_dialect": 2074,
    "sichuan_dialect": 2062,
}
SPEAKERS = {
    "serena": 3066,
    "vivian": 3065,
    "uncle_fu": 3010,
    "ryan": 3061,
    "aiden": 2861,
    "ono_anna": 2873,
    "sohee": 2864,
    "eric": 2875,
    "dylan": 2878,
}
# The authors' table of speakers, https://github.com/QwenLM/Qwen3-TTS, with the language that each speaks best.
VOICE_DETAILS = {
    "serena": VoiceDetails("zh", "female", "young, warm and gentle"),
    "vivian": VoiceDetails("zh", "female", "young, bright, with a slight edge"),
    "uncle_fu": VoiceDetails("zh", "male", "experienced, low and mellow"),
    "ryan": VoiceDetails("en", "male", "lively, with a strong rhythm"),
    "aiden": VoiceDetails("en-US", "male", "cheerful, clear in the middle range"),
    "ono_anna": VoiceDetails("ja", "female", "playful, light and agile"),
    "sohee": VoiceDetails("ko", "female", "warm and expressive"),
    "eric": VoiceDetails("zh", "male", "lively, bright and a little husky, from Chengdu, with the Sichuan dialect"),
    "dylan": VoiceDetails("zh", "male", "young, clear and natural, with the Beijing dialect"),
}
SILENT_FRAMES = 1  # with which every reply of the published speakers begins
DIALECTS = ("beijing_dialect", "sichuan_dialect")  # languages of certain speakers that requests may not choose
DEPTH = DepthSpec(
    hidden=1024,
    intermediate=3072,
    num_layers=5,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    eps=1e-6,
    rope={"rope_type": "default", "rope_theta": 1e6},
    projection="biased",
    has_head_norms=True,
)


@dataclass(frozen=True)
class CodecIds:
    """Ids after the codes in the talker's codec vocabulary: markers on stream 0 of a prompt, and the end id."""

    pad: int = 2148
    bos: int = 2149
    eos: int = 2150
    think: int = 2154
    nothink: int = 2155
    think_bos: int = 2156
    think_eos: int = 2157


@dataclass(frozen=True)
class TextIds:
    """Text ids that occur in every prompt: the beginning and end of a turn, and markers around the words."""

    im_start: int = 151644
    im_end: int = 151645
    assistant: int = 77091
    user: int = 872
    newline: int = 198
    pad: int = 151671
    bos: int = 151672
    eos: int = 151673


@dataclass(frozen=True)
class Qwen3TtsVocabulary(Vocabulary):
    """Text ids, then the codec vocabulary (codes, then markers), then codebook 1, codebook 2, and so on.

    Attributes:
        kind: How the voice is chosen: by name, by description or by recording.
        takes_instructions: True if the model was trained to follow instructions. If not, instructions are dropped, as
            in the authors' code.
        dialects: Dialect of a speaker, used if the request's language is Chinese or not set.
        silent_frames: Number of frames at the start of a reply that are silence if one of the speakers speaks without
            instructions.
    """

    kind: Kind = "custom_voice"
    takes_instructions: bool = True
    num_text_ids: int = 151936
    num_codec_ids: int = 3072
    num_codebooks: int = 16
    codebook_size: int = 2048
    text: TextIds = field(default=TextIds())
    codec: CodecIds = field(default=CodecIds())
    languages: Mapping[str, int] = field(default_factory=lambda: LANGUAGES, hash=False)
    speakers: Mapping[str, int] = field(default_factory=lambda: SPEAKERS, hash=False)
    dialects: Mapping[str, str] = field(
        default_factory=lambda: {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}, hash=False
    )
    silent_frames: int = 0
    max_model_len: int = 32768
    depth: DepthSpec = field(default=DEPTH)

    @property
    def layout(self) -> StreamLayout:
        size = self.codebook_size
        start = self.num_text_ids + self.num_codec_ids
        others = range(start, start + (self.num_codebooks - 1) * size, size)
        pad = self.num_text_ids + self.codec.pad
        return StreamLayout.of_frames([self.num_text_ids, *others], size, num_input_only=1, pad_id=pad)


# As published in generation_config.json.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.9, top_k=50, min_rows=2, max_rows=8191),
    repetition_penalty=1.05,
)


def qwen3_tts(vocabulary: Qwen3TtsVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    layout = vocabulary.layout
    end = vocabulary.num_text_ids + vocabulary.codec.eos
    clones = vocabulary.kind == "base"
    return Family(
        name="qwen3_tts",
        layout=layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, system=("text", "audio") if clones else ()),),
        codec="qwen3_12hz",
        end_of_reply=end,
        voices=tuple(vocabulary.speakers),
        # other releases may use a name for another speaker
        voice_details={name: VOICE_DETAILS[name] for name, _ in vocabulary.speakers.items() & SPEAKERS.items()},
        languages=Languages(tuple(name for name in vocabulary.languages if name not in DIALECTS)),
        options=() if clones else ("instruct",),
        max_text_chars=4000,
        max_audio_s=30.0,  # a few seconds suffice to clone a voice; longer recordings would occupy the encoders
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=2,
        steady_chunk_frames=12,
        tail=NO_TAIL,
        subwords=range(vocabulary.num_text_ids),
        drawing=DrawRules(penalized="drawn"),
        depth=vocabulary.depth,
        track=TextTrack(vocabulary.num_codebooks, vocabulary.text.pad, vocabulary.text.eos, is_usual=clones),
    )


build = builder(Qwen3TtsVocabulary, qwen3_tts)
