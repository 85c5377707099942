"""Families that only benchmarks use: stream layouts of published models, for randomly initialised checkpoints.

Entry points in `lab/releases/registered` register them with the engine. Only values that affect speed are as published.
"""

from stretto.family.base import Family, Task, UnconditionalContext
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

PAD = 0
END_OF_REPLY = 2
END_OF_AUDIO = 3
AUDIO = 8
TEXT = range(256, 152_192)
# ids per stream: a pad, then 1024 codes
NUM_STREAMS = 8
INTERVAL = 1025
PROMPT_ROWS = 53

_SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.6, top_k=20),
    audio=SegmentSampling(temperature=0.8, top_k=20),
    guidance_scale=3.0,
)
SPEAK = Task("speak", (Segment.AUDIO,), (), ("text",), _SAMPLING)
CHAT = Task("chat", (Segment.TEXT, Segment.AUDIO), (TEXT,), ("text",), _SAMPLING)

# The Bagpiper vocabulary of 152,192 + 8 * 1025 ids, with Bagpiper's delays and published default sampling.
BAGPIPER_SMALL = Family(
    name="bagpiper-small",
    layout=StreamLayout(
        vocab_size=TEXT.stop + NUM_STREAMS * INTERVAL,
        audio=tuple(range(TEXT.stop + s * INTERVAL, TEXT.stop + (s + 1) * INTERVAL) for s in range(NUM_STREAMS)),
        delays=tuple(range(NUM_STREAMS)),
        codebook_streams=tuple(range(NUM_STREAMS)),
        pad_id=PAD,
    ),
    tasks=(SPEAK, CHAT),
    codec="none",
    end_of_reply=END_OF_REPLY,
    end_of_text=END_OF_AUDIO,
    end_of_audio=END_OF_AUDIO,
    transition=(AUDIO,),
    guided_streams=tuple(range(NUM_STREAMS)),
    unconditional=UnconditionalContext(null_id=PAD, keep_first=0, keep_last=1),
    max_model_len=1024,
    frame_rate=50.0,
)

# Layouts by command-line name: the family's name in config.json, and the family.
LAYOUTS = {BAGPIPER_SMALL.name: ("benchmark_bagpiper", BAGPIPER_SMALL)}
