"""Families that no published model has: small, and shaped to reach what the bundled one does not."""

from dataclasses import replace

from python_backend.families.base import Family, Task, UnconditionalContext
from python_backend.families.tiny import SPACE, TINY
from python_backend.sampling.params import SamplingConfig, SegmentSampling
from python_backend.streams.layout import StreamLayout
from python_backend.streams.segment import Segment

NUM_TEXT_IDS, CODEBOOK_SIZE, NUM_STREAMS = 160, 48, 8
_SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0, max_rows=24),
    audio=SegmentSampling(temperature=0.0, max_rows=24),
    guidance_scale=2.0,
    seed=0,
)

# Eight codebooks, stream 0 among them, delayed 0 … 7; no script; stream 0 is guided; nothing is hidden.
EIGHT_STREAMS = Family(
    name="eight_streams",
    layout=StreamLayout(
        vocab_size=NUM_TEXT_IDS + NUM_STREAMS * CODEBOOK_SIZE,
        audio=tuple(
            range(NUM_TEXT_IDS + s * CODEBOOK_SIZE, NUM_TEXT_IDS + (s + 1) * CODEBOOK_SIZE) for s in range(NUM_STREAMS)
        ),
        delays=tuple(range(NUM_STREAMS)),
        codebook_streams=tuple(range(NUM_STREAMS)),
    ),
    tasks=(
        Task("chat", (Segment.TEXT, Segment.AUDIO), (range(16, NUM_TEXT_IDS),), ("text",), _SAMPLING),
        Task("speak", (Segment.AUDIO,), (), ("text",), _SAMPLING),
        Task("listen", (Segment.TEXT,), (range(16, NUM_TEXT_IDS),), ("audio",), _SAMPLING),
    ),
    codec="none",
    end_of_reply=1,
    end_of_text=2,
    end_of_audio=4,
    transition=(3,),
    guided_streams=tuple(range(NUM_STREAMS)),
    unconditional=UnconditionalContext(null_id=5, keep_first=0, keep_last=1),
    max_model_len=512,
)

# The bundled family, but its text can only be blanks: the script stays empty.
_TTS = TINY.task("tts")
SPEECHLESS = replace(TINY, name="speechless", tasks=(replace(_TTS, text=(SPACE,)),))
