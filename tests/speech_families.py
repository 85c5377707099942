"""Small test families that cover features that the bundled family lacks."""

from dataclasses import dataclass, replace
from typing import ClassVar

from stretto.families.tiny.family import SPACE, TINY
from stretto.families.vita_audio.bursts import BurstSchedule, ModuleSchedules
from stretto.family.base import DrawRules, Family, Task, UnconditionalContext
from stretto.family.input_tracks import CodeTrack, TextRows, TextTrack
from stretto.family.mechanism import Mechanism
from stretto.family.plugin import lazy
from stretto.records.sampling import LatentSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, FrameCodec, LatentSpec, Segment, StreamLayout

NUM_TEXT_IDS, CODEBOOK_SIZE, NUM_STREAMS = 160, 48, 8
_SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0, max_rows=24),
    audio=SegmentSampling(temperature=0.0, max_rows=24),
    guidance_scale=2.0,
    seed=0,
)
UNGUIDED = replace(_SAMPLING, guidance_scale=1.0)


def eight_streams(name: str, num_text_ids: int) -> Family:
    """Return a family with eight codebooks (including stream 0), delays 0 … 7, and a guided stream 0."""
    starts = range(num_text_ids, num_text_ids + NUM_STREAMS * CODEBOOK_SIZE, CODEBOOK_SIZE)
    return Family(
        name=name,
        layout=StreamLayout(
            vocab_size=num_text_ids + NUM_STREAMS * CODEBOOK_SIZE,
            audio=tuple(range(start, start + CODEBOOK_SIZE) for start in starts),
            delays=tuple(range(NUM_STREAMS)),
            codebook_streams=tuple(range(NUM_STREAMS)),
        ),
        tasks=(
            Task("chat", (Segment.TEXT, Segment.AUDIO), (range(16, num_text_ids),), ("text",), _SAMPLING),
            Task("speak", (Segment.AUDIO,), (), ("text",), _SAMPLING),
            Task("listen", (Segment.TEXT,), (range(16, num_text_ids),), ("audio",), UNGUIDED),
        ),
        codec="none",
        end_of_reply=1,
        end_of_text=2,
        end_of_audio=4,
        transition=(3,),
        guided_streams=tuple(range(NUM_STREAMS)),
        unconditional=UnconditionalContext(null_id=5, keep_first=0, keep_last=1),
        max_model_len=512,
        frame_rate=12.5,
    )


EIGHT_STREAMS = eight_streams("eight_streams", NUM_TEXT_IDS)
# Streams 1 to 7 also sample the pad, so it has an embedding.
_WITH_PADS = replace(EIGHT_STREAMS.layout, extra=((), *[(EIGHT_STREAMS.layout.pad_id,)] * (NUM_STREAMS - 1)))
LEARNED_PADS = replace(EIGHT_STREAMS, name="learned_pads", layout=_WITH_PADS)
# More text ids than one of two tensor-parallel ranks holds.
WIDE_TEXT = eight_streams("wide_text", 640)


# The bundled family, but its text can only be blanks: the script stays empty.
_TTS = TINY.task("tts")
SPEECHLESS = replace(TINY, name="speechless", tasks=(replace(_TTS, text=(SPACE,)),))

# Tokens of the text or its prompt are less likely to be repeated.
PENALIZED = replace(EIGHT_STREAMS, name="penalized", drawing=DrawRules(penalized="drawn"))

# One stream over text and codes, all of which may occur at any position.
INTERLEAVED = replace(
    EIGHT_STREAMS,
    name="interleaved",
    layout=StreamLayout(NUM_TEXT_IDS + CODEBOOK_SIZE, EIGHT_STREAMS.layout.audio[:1], (0,), (0,)),
    tasks=(
        Task("reply", (Segment.INTERLEAVED,), (range(16, NUM_TEXT_IDS + CODEBOOK_SIZE),), ("text",), UNGUIDED),
        Task("listen", (Segment.TEXT,), (range(16, NUM_TEXT_IDS),), ("audio",), UNGUIDED),
    ),
    end_of_reply=1,
    end_of_text=None,
    drawn_ends=(1, 3),
    transition=(),
    guided_streams=(),
    drawing=DrawRules(penalized="all"),
)

# Frames of three rows: each has ids of its own, only the first can be the end. Repeated tokens are less likely.
_PLACES = tuple(range(start, start + 16) for start in range(NUM_TEXT_IDS, NUM_TEXT_IDS + 48, 16))
THREE_ROWS = replace(
    EIGHT_STREAMS,
    name="three_rows",
    layout=StreamLayout(
        NUM_TEXT_IDS + 48, (range(NUM_TEXT_IDS, NUM_TEXT_IDS + 48),), (0,), (0,), frame_codec=FrameCodec(_PLACES)
    ),
    tasks=EIGHT_STREAMS.tasks[1:2],
    end_of_reply=4,
    transition=(),
    guided_streams=(0,),
    tail=NO_TAIL,
    drawing=DrawRules(penalized="drawn"),
)

# Frames are latents of eight numbers (`tests/latent_model.py`).
_LATENT_SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.5, min_rows=20, max_rows=70),
    latents=LatentSampling(steps=2, tail_rows=3),
)
LATENTS = Family(
    name="latents",
    layout=StreamLayout(
        NUM_TEXT_IDS + 2,
        (range(NUM_TEXT_IDS, NUM_TEXT_IDS + 2),),
        delays=(0,) * 9,
        codebook_streams=tuple(range(1, 9)),
        latents=LatentSpec(8, steps=range(1, 5)),
    ),
    tasks=(Task("speak", (Segment.AUDIO,), (), ("text",), _LATENT_SAMPLING),),
    codec="none",
    end_of_reply=1,
    end_of_text=1,
    end_of_audio=1,
    transition=(),
    guided_streams=(),
    unconditional=UnconditionalContext(null_id=5, keep_first=0, keep_last=1),
    max_model_len=512,
    frame_rate=12.5,
    tail=NO_TAIL,
)
# Guided within a row.
GUIDED_LATENTS = replace(
    LATENTS,
    name="guided_latents",
    layout=replace(LATENTS.layout, latents=LatentSpec(8, steps=range(1, 5), has_unit_noise=True)),
    tasks=(
        replace(
            LATENTS.tasks[0],
            sampling=replace(
                _LATENT_SAMPLING,
                audio=replace(_LATENT_SAMPLING.audio, temperature=1.0),
                latents=LatentSampling(steps=2, tail_rows=1, guidance_scale=2.0),
            ),
        ),
    ),
)

# For prompts and replies of thousands of rows.
LONG = replace(EIGHT_STREAMS, name="long", max_model_len=8448)

# Replies of audio with a text beside it, which the other half of a pair reads; or does not.
TRACKED = replace(
    EIGHT_STREAMS,
    name="tracked",
    layout=replace(EIGHT_STREAMS.layout, num_input_only=1),
    tasks=EIGHT_STREAMS.tasks[1:2],
    track=TextTrack(NUM_STREAMS, pad_id=6, end_id=7),
)
HIDDEN_TRACK = replace(
    TRACKED, name="hidden_track", unconditional=replace(TRACKED.unconditional, hidden_streams=(NUM_STREAMS,))
)


class ForcedSteps(ModuleSchedules):
    """Schedules of VITA-Audio, with further rows by a rule instead of modules."""

    predictor: ClassVar = lazy("tests.forced_bursts:ForcedRows")
    extend: ClassVar = None


@dataclass(frozen=True)
class SeparateText(TextTrack):
    """Text in rows of its own, for checks before a reply begins."""

    open: ClassVar = lazy("tests.speech_families:SeparateText")

    @property
    def text_rows(self) -> TextRows:
        return TextRows((), 0)


SEPARATE_TEXT = replace(
    TRACKED,
    name="separate_text",
    layout=StreamLayout(NUM_TEXT_IDS + CODEBOOK_SIZE, EIGHT_STREAMS.layout.audio[:1], (0,), (0,), num_input_only=1),
    guided_streams=(),
    track=SeparateText(1, pad_id=0, end_id=7),
)

# Text beside the codes of a recording, which has three codebooks of 20 codes.
_NUM_RECORDED = 3
_RECORDED_SIZE = 20
RECORDED = Family(
    name="recorded",
    layout=StreamLayout(
        NUM_TEXT_IDS + 3 + _NUM_RECORDED * _RECORDED_SIZE,
        audio=(range(0),),
        delays=(0,),
        codebook_streams=(),
        num_input_only=_NUM_RECORDED,
        pad_id=NUM_TEXT_IDS + 2,
    ),
    tasks=(
        Task(
            "listen",
            (Segment.TEXT,),
            (range(NUM_TEXT_IDS),),
            ("audio",),
            replace(UNGUIDED, text=SegmentSampling(temperature=0.0, max_rows=45_056)),
        ),
    ),
    codec="none",
    end_of_reply=NUM_TEXT_IDS + 1,
    end_of_text=NUM_TEXT_IDS + 1,
    end_of_audio=NUM_TEXT_IDS + 1,
    max_model_len=45_056,
    frame_rate=12.5,
    track=CodeTrack(range(1, 1 + _NUM_RECORDED)),
)


# Steps of up to five rows. Two of its schedules vary the number of rows by step; one has a row per step.
BURSTS = ForcedSteps(
    4, (BurstSchedule("mixed", (1, 2, 2, 4, 3, 3)), BurstSchedule("turbo", (1, 4)), BurstSchedule("off", (9, 0)))
)
# Guided, as a reply that begins with audio may be; and unguided, from text to audio within a burst.
FORCED_BURSTS = replace(
    EIGHT_STREAMS, name="forced_bursts", tasks=EIGHT_STREAMS.tasks[1:], mechanism=Mechanism(steps=BURSTS)
)
FORCED_CHAT = replace(EIGHT_STREAMS, name="forced_chat", guided_streams=(), mechanism=Mechanism(steps=BURSTS))

_PENALIZED_TASKS = tuple(
    replace(task, sampling=replace(task.sampling, repetition_penalty=1.3)) for task in FORCED_BURSTS.tasks
)
MODULE_STEPS = ModuleSchedules(
    4,
    (
        BurstSchedule("turbo", (1, 4)),
        BurstSchedule("vanilla", (8192, 0)),
        BurstSchedule("boost", (1, 4, 4, 4)),
        BurstSchedule("balance", (1, 2, 3, 3, 4, 4)),
        BurstSchedule("turbo_2", (1, 2)),
    ),
)
# With the modules of MCTP. The shapes of the published schedules, for four modules; the last uses two of them only.
# Tokens of its text or its prompt, including rows of the same multi-token step, are less likely to be repeated.
MODULES = replace(
    FORCED_BURSTS,
    name="modules",
    tasks=_PENALIZED_TASKS,
    drawing=DrawRules(penalized="all"),
    mechanism=Mechanism(steps=MODULE_STEPS),
)
# The same of its codes on stream 0, which are guided: it writes no text.
PENALIZED_SPEECH = replace(MODULES, name="penalized_speech", tasks=_PENALIZED_TASKS[:1])
