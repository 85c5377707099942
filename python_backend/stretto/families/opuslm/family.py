"""OpusLM and OpusLM dialogue: OLMo 2 or SmolLM2 with nine streams (one of semantic tokens, eight of codec codes).

    tts         [sos][plain_tts][text] words … pad×8 [codec_ssl] ─► rows …
    voice       [sos][tts][text] words … pad×8 [spk] 500 frames, pad×8 [codec_ssl] ─► rows …
    asr         [sos][asr][codec_ssl] frames … pad×8 [text] ─► words
    text_lm     [sos][textlm][text] words … ─► words
    audio_lm    [sos][audiolm][codec_ssl] frames … ─► rows …
    dialogue    [sos][audio_dialogue] turns … [assistant][text] ─► words, pad×8 [assistant][codec_ssl] ─► rows …

Stream s is delayed by s rows, also in prompts. Streams 1 to 8 also sample pads, so every pad adds a learned embedding.
A stream carries pads before its first frame. After the model has sampled the end id on stream 0, eight more rows
complete the last frames. The numbers come from `espnet/OpusLM_7B_Anneal`; a checkpoint's config.json may override them
(`speech_vocabulary`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stretto.family.base import Family, Task, TextRate, Vocabulary, builder
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import SAMPLED_TAIL, SampledTail, Segment, StreamLayout

NUM_STREAMS = 9
PAD = 0
SOS_EOS = 5
SYSTEM_PROMPT = 8
USER_INPUT = 9
ASSISTANT_OUTPUT = 10
NEVER_READ = 255  # unused special token that marks the end of a reply for the engine
MODALITIES = {"codec": 32, "ssl": 33, "codec_ssl": 34, "text_bpe": 35, "g2p": 36, "spk": 37}
TASKS = {
    "textlm": 64,
    "codec_ssl_asr": 80,
    "codec_ssl_tts": 81,
    "codec_ssl_plain_tts": 82,
    "codec_ssl_audiolm": 83,
    "text_dialogue": 88,
    "audio_dialogue": 89,
}
FRAME_RATE = 50.0
VOICE_FRAMES = 500


@dataclass(frozen=True)
class PaddedTail(SampledTail):
    """Tail as long as SampledTail; each stream is padded from the second row after its last frame.

    In the example of `streams/layout.py`:

        stream 0   C e ~ E
        stream 1   B C ~ .
        stream 2   A B C ~

    All streams are sampled in the first row after end_of_audio. If a length limit forces `e`, that row is left out, so
    its `~` becomes `.`.
    """

    cut_rows = 1

    def last_kept(self, delay: int) -> int:
        """Return the row after the stream's last frame, at least the first row after end_of_audio."""
        return max(1, delay)


PADDED_TAIL = PaddedTail()
TAILS = {"padded": PADDED_TAIL, "sampled": SAMPLED_TAIL}


@dataclass(frozen=True)
class OpusVocabulary(Vocabulary):
    """Id ranges of text, semantic tokens and codes.

    Attributes:
        text, ssl: First id of text, and of semantic tokens, and the id after the last one.
        codec: First id of the first codebook; the other codebooks follow.
        modalities: Ids of the modality tokens (`<codec_ssl>`, …) by name; they differ between releases.
        tasks: Ids of the task tokens (`<codec_ssl_asr_task>`, …) by name; they differ between releases.
        tail: Key of TAILS for the contents of the streams after the end of audio, which depend on the ESPnet version.
    """

    vocab_size: int = 113870
    text: tuple[int, int] = (13448, 113800)
    ssl: tuple[int, int] = (256, 5256)
    codec: int = 5256
    codebook_size: int = 1024
    modalities: Mapping[str, int] = field(default_factory=lambda: dict(MODALITIES))
    tasks: Mapping[str, int] = field(default_factory=lambda: dict(TASKS))
    tail: str = "padded"

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {self.tail!r}")

    @property
    def layout(self) -> StreamLayout:
        codebooks = [
            range(self.codec + k * self.codebook_size, self.codec + (k + 1) * self.codebook_size)
            for k in range(NUM_STREAMS - 1)
        ]
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(range(*self.ssl), *codebooks),
            delays=tuple(range(NUM_STREAMS)),
            codebook_streams=tuple(range(1, NUM_STREAMS)),
            pad_id=PAD,
            extra=((self.modalities["codec_ssl"],), *((PAD,) for _ in codebooks)),
        )


MOST_ROWS = 2048 - (NUM_STREAMS - 1)  # excluding the rows that complete the streams, which ESPnet's `maxlen` includes
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0, min_rows=1, max_rows=MOST_ROWS),
    audio=SegmentSampling(temperature=0.8, top_k=30, min_rows=3, max_rows=MOST_ROWS),
)
TEXT_RATE = TextRate(first_rows=16, rows_per_s=25.0)


def _family(name: str, vocabulary: OpusVocabulary, tasks: tuple[Task, ...]) -> Family:
    markers = {name: vocabulary.modalities[name] for name in ("codec_ssl", "text_bpe", "spk")}
    return Family(
        name=name,
        layout=vocabulary.layout,
        tasks=tasks,
        codec="espnet_dac",
        end_of_reply=NEVER_READ,
        end_of_text=PAD,  # the sampled end id is not read; a pad begins the rows between the segments
        end_of_audio=SOS_EOS,
        drawn_ends=(SOS_EOS,),
        transition=(*[PAD] * (NUM_STREAMS - 2), ASSISTANT_OUTPUT, vocabulary.modalities["codec_ssl"]),
        max_text_chars=4000,
        max_audio_s=30.0,
        max_model_len=8192,
        frame_rate=FRAME_RATE,
        first_chunk_frames=8,
        steady_chunk_frames=25,
        tail=TAILS[vocabulary.tail],
        has_stream_bias=True,
        subwords=range(*vocabulary.text),
        markers={**markers, **vocabulary.tasks},
    )


def _text(vocabulary: OpusVocabulary) -> tuple[range, range]:
    """Return the ids that a text segment may contain: words, and the text marker, which ESPnet's masks also permit."""
    marker = vocabulary.modalities["text_bpe"]
    return range(*vocabulary.text), range(marker, marker + 1)


def opuslm(vocabulary: OpusVocabulary) -> Family:
    """Return the base model's family, which has one task per request."""
    text = _text(vocabulary)
    return _family(
        "opuslm",
        vocabulary,
        (
            Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, system=("audio",), continues="voice"),
            Task("asr", (Segment.TEXT,), text, ("audio",), SAMPLING, text_rate=TEXT_RATE),
            Task("text_lm", (Segment.TEXT,), text, ("text",), SAMPLING),
            Task("audio_lm", (Segment.AUDIO,), (), ("audio",), SAMPLING),
        ),
    )


def opuslm_dialogue(vocabulary: OpusVocabulary) -> Family:
    """Return the dialogue model's family, which replies to turns with words followed by speech."""
    text = _text(vocabulary)
    turns: dict[str, Any] = {"has_history": True, "system": ("text", "audio")}
    return _family(
        "opuslm_dialogue",
        vocabulary,
        (
            Task("dialogue", (Segment.TEXT, Segment.AUDIO), text, (), SAMPLING, also=("text", "audio"), **turns),
            Task("text_dialogue", (Segment.TEXT,), text, ("text",), SAMPLING, **turns),
            Task("speak", (Segment.AUDIO,), (), ("text",), SAMPLING, answers="assistant", **turns),
            Task("asr", (Segment.TEXT,), text, ("audio",), SAMPLING, text_rate=TEXT_RATE, **turns),
        ),
    )


build = builder(OpusVocabulary, opuslm)
build_dialogue = builder(OpusVocabulary, opuslm_dialogue)
