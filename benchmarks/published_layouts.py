"""The stream layouts of published models, for benchmarks on random weights: only what costs time is as published."""

from stretto.families.base import Family, Task, UnconditionalContext
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

PAD, END_OF_REPLY, END_OF_AUDIO, AUDIO = 0, 2, 3, 8
TEXT = range(256, 152_192)
NUM_STREAMS, INTERVAL = 8, 1025  # each stream's pad, then its 1024 codes
PROMPT_ROWS = 53

_SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.6, top_k=20),
    audio=SegmentSampling(temperature=0.8, top_k=20),
    guidance_scale=3.0,
)

# Bagpiper's vocabulary of 152,192 + 8 * 1025 ids, its delays, and the sampling of its published defaults.
BAGPIPER_SMALL = Family(
    name="bagpiper-small",
    layout=StreamLayout(
        vocab_size=TEXT.stop + NUM_STREAMS * INTERVAL,
        audio=tuple(range(TEXT.stop + s * INTERVAL, TEXT.stop + (s + 1) * INTERVAL) for s in range(NUM_STREAMS)),
        delays=tuple(range(NUM_STREAMS)),
        codebook_streams=tuple(range(NUM_STREAMS)),
        pad_id=PAD,
    ),
    tasks=(
        Task("speak", (Segment.AUDIO,), (), ("text",), _SAMPLING),
        Task("chat", (Segment.TEXT, Segment.AUDIO), (TEXT,), ("text",), _SAMPLING),
    ),
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

# By name: what a checkpoint's config.json calls the family, and the family.
LAYOUTS = {BAGPIPER_SMALL.name: ("benchmark_bagpiper", BAGPIPER_SMALL)}
