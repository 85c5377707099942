"""`tiny`: the bundled model. It converts characters to phonemes and then to speech, or audio to characters.

    tts   [tts][voice] c a t [begin_text] ─► pau k ae t pau [end_of_text] [begin_audio] rows … [end_of_reply]
    asr   [asr][begin_audio] audio rows [begin_text] ─► pau k ae t pau [separator] c a t [end_of_reply]

A row has stream 0 (text, or the phoneme spoken in this frame), seven codec streams, and one input-only stream. The
latter carries the ordinal number of the row's phoneme (text and audio segments) or of the row's frame (audio rows of a
prompt).
"""

from collections.abc import Mapping
from typing import Any

from stretto.families.base import Family, Languages, Script, Task, UnconditionalContext
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

PAD, END_OF_REPLY, END_OF_TEXT, BEGIN_AUDIO, END_OF_AUDIO, NULL, TTS, ASR, BEGIN_TEXT, SEPARATOR = range(10)
VOICES = {"heart": 10}
CHARACTERS = " abcdefghijklmnopqrstuvwxyz',.?!"
FIRST_CHARACTER = 16
PHONEMES = (  # as in the CMU dictionary: a vowel with 1 has the main stress, with 2 a secondary one
    *"b ch d dh dx f g hh jh k l m n ng p pau r s sh t th v w y z zh ac ax el ix".split(),
    *(f"{vowel}{stress}" for vowel in "aa ae ah ao aw ay eh er ey ih iy ow oy uh uw".split() for stress in ("", 1, 2)),
)
FIRST_PHONEME = 48
FIRST_FRAME_TOKEN = 128  # + 2 * phoneme: first frame of a phoneme; + 2 * phoneme + 1: any later frame of it
PHONEME_INDEX_BASE = 288  # + ordinal, 1 … 511
FRAME_INDEX_BASE = 800  # + ordinal, 1 … 511
FIRST_CODE = 1312
NUM_CODEBOOKS = 7
CODEBOOK_SIZE = 256
LEAD = 3  # delay of the codec streams, in rows, so that they can depend on the phonemes that follow

LAYOUT = StreamLayout(
    vocab_size=FIRST_CODE + NUM_CODEBOOKS * CODEBOOK_SIZE,
    audio=(
        range(FIRST_FRAME_TOKEN, FIRST_FRAME_TOKEN + 2 * len(PHONEMES)),
        *(range(FIRST_CODE + k * CODEBOOK_SIZE, FIRST_CODE + (k + 1) * CODEBOOK_SIZE) for k in range(NUM_CODEBOOKS)),
    ),
    delays=(0, *(LEAD + k for k in range(NUM_CODEBOOKS))),
    codebook_streams=tuple(range(1, NUM_CODEBOOKS + 1)),
    num_input_only=1,
    pad_id=PAD,
)
SPOKEN = range(FIRST_PHONEME, FIRST_PHONEME + len(PHONEMES))
WRITTEN = range(FIRST_CHARACTER, FIRST_CHARACTER + len(CHARACTERS))
SPACE = range(FIRST_CHARACTER, FIRST_CHARACTER + 1)

SPEECH = SegmentSampling(temperature=0.3, top_k=30, max_rows=800)

TINY = Family(
    name="tiny",
    layout=LAYOUT,
    tasks=(
        Task(
            name="tts",
            segments=(Segment.TEXT, Segment.AUDIO),
            text=(SPACE, SPOKEN),
            needs=("text",),
            sampling=SamplingConfig(
                text=SegmentSampling(temperature=0.0, max_rows=511),
                audio=SPEECH,
                guidance_scale=2.0,
                script_temperature=0.6,
            ),
        ),
        Task(
            name="asr",
            segments=(Segment.TEXT,),
            text=(WRITTEN, SPOKEN, range(SEPARATOR, SEPARATOR + 1)),
            needs=("audio",),
            sampling=SamplingConfig(text=SegmentSampling(temperature=0.0, max_rows=800), audio=SPEECH),
        ),
    ),
    codec="tiny",
    end_of_reply=END_OF_REPLY,
    end_of_text=END_OF_TEXT,
    end_of_audio=END_OF_AUDIO,
    transition=(BEGIN_AUDIO,),
    guided_streams=tuple(range(1, NUM_CODEBOOKS + 1)),
    unconditional=UnconditionalContext(null_id=NULL, keep_first=2, keep_last=1, hidden_streams=(0, 8)),
    script=Script(
        spoken=SPOKEN,
        first_frame=FIRST_FRAME_TOKEN,
        index_base=PHONEME_INDEX_BASE,
        index_stream=8,
        max_entries=511,
    ),
    voices=tuple(VOICES),
    voice_titles=("Female",),
    languages=Languages(("english", "en")),
    options=("transliterate",),
    max_text_chars=300,
    max_audio_s=18.0,
    max_model_len=2048,
    frame_rate=80 / 3,
)


def build(name: str, vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family; `vocabulary` is ignored, because there is only one."""
    return TINY
