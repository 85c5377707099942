"""CSM (Sesame): Llama 3.2 1B over rows of text or of 32 Mimi codes, with a depth transformer.

    tts      [bos][0]Hello[eos] ─► frames … end frame
    speak    [bos][1]Hi[eos] frames … end frame  [bos][0]Hello[eos] frames … end frame  [bos][0]Bye[eos] ─► frames …

A turn consists of a speaker's number and words, followed by the speech, with one row per frame (12.5 per second). The
backbone samples the first code of a frame, and the depth transformer samples the others one by one. The reply ends with
a frame of zeros: in all codebooks but the last in transformers, in all of them in Sesame's code. The model generates no
text, replies begin with audio, and no stream is delayed. Guidance was added by this server: the unconditional request
contains neither the words nor earlier turns. The numbers come from `sesame/csm-1b`; a checkpoint's config.json may
override them (`speech_vocabulary`).
"""

from dataclasses import dataclass, field

from stretto.family.base import ROLES, DepthSpec, Family, Task, UnconditionalContext, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

END_CODE = 0
VOICES = ("0", "1")  # possible speaker numbers of the assistant; the user has the other one
DEPTH = DepthSpec(
    hidden=1024,
    intermediate=8192,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    eps=1e-5,
    rope={
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 0.001953125,
        "high_freq_factor": 0.0078125,
        "original_max_position_embeddings": 16,
    },
)


@dataclass(frozen=True)
class CsmVocabulary(Vocabulary):
    """Text ids, followed by the ids of the codebooks, one codebook after the other.

    Attributes:
        begin, end: Ids at the beginning and the end of a text.
        end_of_audio: Id that marks the end of a reply for the engine; the model does not read it.
        num_end_codebooks: Number of codebooks, counted from the first, that are zero in the frame that ends the audio.
    """

    num_text_ids: int = 128256
    num_codebooks: int = 32
    codebook_size: int = 2048
    begin: int = 128000
    end: int = 128001
    pad: int = 128002
    end_of_audio: int = 128003
    num_end_codebooks: int = 31
    max_model_len: int = 2048
    depth: DepthSpec = field(default=DEPTH)

    def __post_init__(self) -> None:
        if not 1 <= self.num_end_codebooks <= self.num_codebooks:
            raise ValueError(f"num_end_codebooks must be in [1, {self.num_codebooks}], got {self.num_end_codebooks}")

    @property
    def layout(self) -> StreamLayout:
        stop = self.num_text_ids + self.num_codebooks * self.codebook_size
        starts = range(self.num_text_ids, stop, self.codebook_size)
        return StreamLayout.of_frames(starts, self.codebook_size, pad_id=self.pad)


# Defaults of `Generator.generate`, which apply to all codebooks: `temperature`, `topk`, and a `max_audio_length_ms` of
# 90 s (https://github.com/SesameAILabs/csm, generator.py).
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.9, top_k=50, min_rows=1, max_rows=1125),
)


SPEAK = Task(
    "speak",
    (Segment.AUDIO,),
    (),
    ("text",),
    SAMPLING,
    also=("audio",),
    answers="assistant",
    has_history=True,
    voice_roles=ROLES,
    continues="turns",
)


def csm(vocabulary: CsmVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    layout = vocabulary.layout
    return Family(
        name="csm",
        layout=layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING), SPEAK),
        codec="mimi",
        end_of_reply=vocabulary.end_of_audio,
        guided_streams=tuple(range(vocabulary.num_codebooks)),
        unconditional=UnconditionalContext(null_id=vocabulary.pad, keep_first=1, keep_last=1),
        voices=VOICES,
        max_text_chars=4000,
        max_audio_s=60.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=12.5,
        first_chunk_frames=2,
        steady_chunk_frames=12,
        tail=NO_TAIL,
        subwords=range(vocabulary.num_text_ids),
        markers={"begin": vocabulary.begin, "end": vocabulary.end},
        depth=vocabulary.depth,
        end_frame=tuple(ids.start + END_CODE for ids in layout.audio[: vocabulary.num_end_codebooks]),
    )


build = builder(CsmVocabulary, csm)
