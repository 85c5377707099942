"""VibeVoice (Microsoft, https://github.com/microsoft/VibeVoice): dialogues of up to four speakers, 7.5 latents/s.

    tts     system prompt, voices, script, [begin] ─► x0 x1 … xn [end] [begin] … [end] [end of reply]

A row is a text id or a frame, which consists of its latent and the semantic encoder's features of the audio decoded so
far. The model's head chooses among frame, begin, end and end of reply. The latent of a frame is generated from the
previous row. The unconditional request for guidance reads only the current stretch: the mark that begins it, and its
frames.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from stretto.family.base import ROLES, DrawRules, Family, Task, UnconditionalContext, Vocabulary, builder
from stretto.family.mechanism import FrameFilter, Mechanism
from stretto.family.plugin import lazy
from stretto.records.sampling import LatentSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, LatentSpec, Segment, StreamLayout

NAME = "vibevoice"
FRAME_RATE = 7.5
# as in the authors' demo
DEFAULT_STEPS = 10
DEFAULT_GUIDANCE = 1.3
STEPS = range(2, 51)
MAX_FRAMES = 8192  # 18 minutes; prompt and reply together have at most `max_model_len` rows
# far above those of any release
MAX_IDS = 1 << 20
MAX_NUMBERS = 4096
MAX_TEXT_CHARS = 10_000
MAX_AUDIO_S = 30.0


@dataclass(frozen=True)
class VibeVoiceVocabulary(Vocabulary):
    """Ids and sizes of a release.

    Attributes:
        num_text_ids: Number of ids in the embedding table.
        num_numbers: Number of elements in an acoustic latent.
        num_features: Number of semantic features per frame.
        is_tied: True if the head uses the rows of the embedding table.
    """

    num_text_ids: int = 151936
    begin: int = 151652
    end: int = 151653
    frame: int = 151654
    end_of_reply: int = 151643
    num_numbers: int = 64
    num_features: int = 128
    max_model_len: int = MAX_FRAMES
    is_tied: bool = True

    def __post_init__(self) -> None:
        if len({*self.ids}) < len(self.ids) or not 0 <= min(self.ids) <= max(self.ids) < self.num_text_ids <= MAX_IDS:
            raise ValueError(
                f"begin, end, frame and end_of_reply must differ and be below {self.num_text_ids}, got {self.ids}"
            )
        for name in ("num_numbers", "num_features"):
            if not 1 <= getattr(self, name) <= MAX_NUMBERS:
                raise ValueError(f"{name} must be in [1, {MAX_NUMBERS}], got {getattr(self, name)}")

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids that occur in a reply, in the order of the head's rows, with the end of the reply last."""
        return *sorted((self.begin, self.end, self.frame)), self.end_of_reply

    @property
    def voice(self) -> int:
        """Id of rows with a latent of a recording."""
        return self.num_text_ids

    @property
    def vocab_size(self) -> int:
        return self.voice + 1

    @property
    def num_words(self) -> int:
        """Number of 32-bit words per frame: latent, flag of a stretch's first frame, semantic features."""
        return self.num_numbers + 1 + self.num_features

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(range(self.frame, self.frame + 1),),
            delays=(0,) * (1 + self.num_words),
            codebook_streams=tuple(range(1, 2 + self.num_numbers)),
            extra=((self.begin, self.end),),
            latents=LatentSpec(
                self.num_words,
                STEPS,
                voice_ids=range(self.voice, self.voice + 1),
                has_unit_noise=True,
                num_other_words=1 + self.num_features,
            ),
        )


@dataclass(frozen=True)
class Stretches(DrawRules):
    """Several stretches of audio in a reply, with marks around them.

    stream 0        streams 1 and up
    a frame         latent, 1.0 in the first frame of a stretch (else 0.0), features of the decoded audio
    begin, end      0; the first and the last row of a stretch
    end of audio    0

    The most probable of these ids is chosen, but only a begin or the end of audio may follow an
    end. Otherwise, frames, begins and ends follow each other in any order; the prompt ends with a begin. A network
    computes the features from the decoded audio of the stretch so far.
    """

    begin: int
    end: int
    frame: int
    num_features: int

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:StretchDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:StretchProgram")

    @property
    def prompt_end(self) -> int:
        return self.begin


@dataclass(frozen=True, kw_only=True)
class StretchContext(UnconditionalContext):
    """Rules for unconditional requests that begin anew with each stretch of audio."""

    stretches: Stretches

    pair: ClassVar = lazy(f"{__package__}.mechanism.pair:StretchPair")


SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, min_rows=1, max_rows=MAX_FRAMES),
    latents=LatentSampling(DEFAULT_STEPS),
    guidance_scale=DEFAULT_GUIDANCE,
)


def vibevoice(vocabulary: VibeVoiceVocabulary) -> Family:
    """Return the family for a vocabulary."""
    content: dict[str, Any] = {"also": ("audio",), "has_history": True, "system": ("audio",), "voice_roles": ROLES}
    tts = Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, **content)
    layout = vocabulary.layout
    stretches = Stretches(vocabulary.begin, vocabulary.end, vocabulary.frame, vocabulary.num_features)
    return Family(
        name=NAME,
        layout=layout,
        tasks=(tts,),
        codec="vibevoice",
        end_of_reply=vocabulary.end_of_reply,
        guided_streams=layout.codebook_streams,
        unconditional=StretchContext(null_id=0, keep_first=0, keep_last=1, stretches=stretches),
        max_text_chars=MAX_TEXT_CHARS,
        max_audio_s=MAX_AUDIO_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=1,
        steady_chunk_frames=8,
        tail=NO_TAIL,
        audio_head=None if vocabulary.is_tied else "plain",
        mechanism=Mechanism(frames=FrameFilter()),
        drawing=stretches,
    )


build = builder(VibeVoiceVocabulary, vibevoice)
