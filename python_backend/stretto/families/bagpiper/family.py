"""Bagpiper: Qwen3 with eight streams. Input: text or audio. Output: text, or a caption followed by speech.

    understand  [bos][system] … [user][audio] features … [user][text] question [assistant][text] ─► answer [end]
    generate    [bos][system] … [user][text] wish [assistant][text] ─► caption [end][assistant][audio] rows … [end]
    chat        [bos][system] … [user][text] question [assistant][text] ─► answer [end]
    tts         [bos][user][text] request [assistant][text] ─► as generate
    speak       [bos][user][text] request [assistant][audio] ─► rows … [end]

In training every turn ends with [eos], or with [eot] if the next turn has the same role. A segment of the reply may end
with either, as in ESPnet's loop. The next row follows the sampled end id, or the last text id if a length limit ended
the text. Earlier turns are allowed except for tts and speak, because the fine-tuned checkpoint was trained for these
two without earlier turns and without a system turn.

In an audio segment, all eight streams are sampled, and a sampled id may be a pad. Stream s is delayed by s rows and
carries the pad of its own codebook in rows without a frame. The numbers come from the published checkpoints
`espnet/bagpiper*`. A checkpoint's config.json may override them (`speech_vocabulary`); the converter writes the values
of the release.
"""

from dataclasses import dataclass
from typing import Any

from stretto.family.base import Family, Task, UnconditionalContext, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, SAMPLED_WARM_UP, Segment, StreamLayout

PAD, BOS, END_OF_REPLY, END_OF_TURN, SYSTEM, USER, ASSISTANT, TEXT, AUDIO = range(9)
SPECIAL_TOKENS = ("pad", "bos", "eos", "eot", "system", "user", "assistant", "text", "audio")
NEVER_READ = 255  # unused special token that marks the end of a reply for the engine
NUM_STREAMS = 8
FRAME_RATE = 50.0


@dataclass(frozen=True)
class BagpiperVocabulary(Vocabulary):
    """Id ranges of text and codes.

    Attributes:
        text: First id of the tokenizer's tokens, which are in its order, and the id after the last one.
        first_audio: Pad of stream 0. Each stream has a pad followed by its codes, one stream after the other.
    """

    vocab_size: int = 160392
    text: tuple[int, int] = (256, 152192)
    first_audio: int = 152192
    codebook_size: int = 1024

    @property
    def layout(self) -> StreamLayout:
        pads = [self.first_audio + stream * (self.codebook_size + 1) for stream in range(NUM_STREAMS)]
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=tuple(range(pad + 1, pad + 1 + self.codebook_size) for pad in pads),
            delays=tuple(range(NUM_STREAMS)),
            codebook_streams=tuple(range(NUM_STREAMS)),
            pad_id=PAD,
            extra=tuple((pad,) for pad in pads),
        )


def bagpiper(vocabulary: BagpiperVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary; sampling defaults are those of the authors' code."""
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.6, top_k=20, min_rows=1, max_rows=8192),
        audio=SegmentSampling(temperature=0.8, top_k=20, min_rows=50, max_rows=2048),
        guidance_scale=3.0,
    )
    unguided = SamplingConfig(text=sampling.text, audio=sampling.audio)
    text = (range(*vocabulary.text),)
    both = (Segment.TEXT, Segment.AUDIO)
    general: dict[str, Any] = {"has_history": True, "system": ("text",)}
    return Family(
        name="bagpiper",
        layout=vocabulary.layout,
        tasks=(
            Task("tts", both, text, ("text",), sampling),
            Task("understand", (Segment.TEXT,), text, ("audio",), unguided, also=("text",), **general),
            Task("chat", (Segment.TEXT,), text, ("text",), unguided, **general),
            Task("generate", both, text, ("text",), sampling, also=("audio",), **general),
            Task("speak", (Segment.AUDIO,), (), ("text",), sampling),
        ),
        codec="xcodec",
        end_of_reply=NEVER_READ,
        end_of_text=None,
        drawn_ends=(END_OF_REPLY, END_OF_TURN),
        transition=(ASSISTANT, AUDIO),
        guided_streams=tuple(range(NUM_STREAMS)),
        unconditional=UnconditionalContext(null_id=PAD, keep_first=0, keep_last=1),
        max_text_chars=8000,
        max_audio_s=30.0,
        max_model_len=32768,
        frame_rate=FRAME_RATE,
        first_chunk_frames=8,
        steady_chunk_frames=25,
        warm_up=SAMPLED_WARM_UP,
        tail=NO_TAIL,
        has_stream_bias=True,
        subwords=range(*vocabulary.text),
    )


build = builder(BagpiperVocabulary, bagpiper)
