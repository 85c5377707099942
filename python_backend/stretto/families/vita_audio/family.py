"""VITA-Audio: the Qwen 2.5 vocabulary, markers, and one id per code of the GLM-4-Voice tokenizer.

A spoken reply is a single stream: a few words, `<|begin_of_audio|>`, codes, `<|end_of_audio|>`, a few words, and so on.
The model learned this order; it is not enforced. Paper: https://arxiv.org/abs/2505.03739.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stretto.families.vita_audio.bursts import BurstSchedule, ModuleSchedules
from stretto.family.audio_format import AudioFormat
from stretto.family.base import DrawRules, Family, Task, TextRate, Vocabulary, builder
from stretto.family.mechanism import Mechanism
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

FRAME_RATE = 12.5
# Ids by name (`<|im_start|>` and so on) in the tokenizer of releases with discrete audio input.
MARKERS = {
    "endoftext": 151643,
    "im_start": 151644,
    "im_end": 151645,
    "begin_of_audio": 151674,
    "end_of_audio": 151675,
}
# Placeholder for each output row of the SenseVoice encoder, in releases that have this encoder.
HEARD = "context_of_audio"
# Numbers of text and audio tokens, including markers, that alternate in training; the last pair is repeated
# (https://github.com/VITA-MLLM/VITA-Audio, scripts/deepspeed/sts_qwen25).
BOOST_RATIO = (1, 10, 4, 10)
# Numbers of tokens that backbone and modules generate in turn; the last pair is repeated (`tools/inference_sts.py` in
# the same repository).
VANILLA = "vanilla"
BALANCE = "balance"
SCHEDULES = {VANILLA: (8192, 0), BALANCE: (1, 4, 3, 8, 4, 10), "boost": BOOST_RATIO, "turbo": (1, 10)}


@dataclass(frozen=True)
class VitaVocabulary(Vocabulary):
    """Id ranges: text below `first_audio`, then `codebook_size` codes.

    Attributes:
        ratio: Numbers of text ids and audio ids that alternate in training (see BOOST_RATIO).
        schedule: Default schedule, a key of SCHEDULES.
    """

    vocab_size: int = 168072
    first_audio: int = 151685
    codebook_size: int = 16384
    markers: Mapping[str, int] = field(default_factory=lambda: dict(MARKERS))
    ratio: tuple[int, ...] = BOOST_RATIO
    num_modules: int = 10
    schedule: str = BALANCE

    def __post_init__(self) -> None:
        if self.first_audio + self.codebook_size > self.vocab_size:
            got = f"{self.first_audio} + {self.codebook_size} > {self.vocab_size}"
            raise ValueError(f"first_audio + codebook_size must be at most vocab_size, got {got}")
        if missing := sorted(MARKERS.keys() - self.markers.keys()):
            raise ValueError(f"markers: missing {missing[0]}")
        if not self.ratio or len(self.ratio) % 2 or min(self.ratio[::2]) < 1 or min(self.ratio[1::2]) < 3:
            raise ValueError(f"ratio: expected pairs of M >= 1 and m >= 3, got {self.ratio}")

        if max(SCHEDULES.get(self.schedule, (0, self.num_modules + 1))[1::2]) > self.num_modules:
            raise ValueError(f"schedule: {self.schedule!r} requires more than {self.num_modules} modules")

    @property
    def steps(self) -> ModuleSchedules | None:
        """MCTP modules with the default schedule and the others that their number permits; None without modules."""
        others = [name for name, mode in SCHEDULES.items() if max(mode[1::2]) <= self.num_modules]
        if not self.num_modules:
            return None
        names = dict.fromkeys([self.schedule, *others])
        return ModuleSchedules(self.num_modules, tuple(BurstSchedule(name, SCHEDULES[name]) for name in names))

    @property
    def layout(self) -> StreamLayout:
        codes = range(self.first_audio, self.first_audio + self.codebook_size)
        return StreamLayout(self.vocab_size, (codes,), (0,), (0,), pad_id=self.markers["endoftext"])


# From generation_config.json; the authors' scripts sample greedily, except for text-to-speech.
DRAWN = SegmentSampling(temperature=0.7, top_k=20, top_p=0.8, max_rows=8192)
GREEDY = SegmentSampling(temperature=0.0, top_k=20, top_p=0.8, max_rows=8192)
PENALTY = 1.05
TEXT_RATE = TextRate(first_rows=16, rows_per_s=25.0)


def _sampling(text: SegmentSampling) -> SamplingConfig:
    return SamplingConfig(text=text, audio=text, repetition_penalty=PENALTY)


def vita_audio(vocabulary: VitaVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary.

    Tasks allow every id, so the model itself decides how text and codes alternate.
    """
    end = vocabulary.markers["im_end"]
    also_end = vocabulary.markers["endoftext"]
    everything = (range(vocabulary.vocab_size),)
    both = (Segment.INTERLEAVED,)
    text = (Segment.TEXT,)
    return Family(
        name="vita_audio",
        layout=vocabulary.layout,
        tasks=(
            Task("tts", both, everything, ("text",), _sampling(DRAWN), system=("audio",)),
            Task(
                "dialogue",
                both,
                everything,
                (),
                _sampling(GREEDY),
                also=("text", "audio"),
                has_history=True,
                system=("text", "audio"),
            ),
            Task("asr", text, everything, ("audio",), _sampling(GREEDY), text_rate=TEXT_RATE),
            Task("chat", text, everything, ("text",), _sampling(GREEDY), has_history=True, system=("text",)),
        ),
        codec="glm4_voice",
        end_of_reply=end,
        end_of_text=None,
        drawn_ends=(end, also_end),
        max_text_chars=8000,
        max_audio_s=30.0,
        max_model_len=32768,
        frame_rate=FRAME_RATE,
        first_chunk_frames=10,
        steady_chunk_frames=25,
        subwords=range(vocabulary.first_audio),
        markers=dict(vocabulary.markers),
        drawing=DrawRules(penalized="all"),
        mechanism=Mechanism(steps=vocabulary.steps),
    )


build = builder(VitaVocabulary, vita_audio)


SENSE_VOICE = "sense_voice_small"  # `model_type` of the encoder
NUM_QUERIES = 4  # number of learned rows that the encoder prepends to the audio rows


@dataclass(frozen=True, slots=True)
class StackedFormat(AudioFormat):
    """Input format of the SenseVoice encoder: frames of several stacked log-mel frames."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "StackedFormat":
        """Read the format from the `audio_config` of a SenseVoice encoder."""
        return cls(record["num_mel_bins"])

    def num_rows(self, num_frames: int) -> int:
        """Return the number of rows: one per frame, plus the encoder's own query rows."""
        return NUM_QUERIES + num_frames
