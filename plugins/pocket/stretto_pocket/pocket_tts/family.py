"""Pocket TTS (Kyutai, https://github.com/kyutai-labs/pocket-tts): speech as latents of 80 ms each.

    tts     voice, n rows │ text ids │ [bos] ─► x0 x1 x2 … xe … [end]

A row of the prompt is an id: a row of a voice, a text token, or the beginning-of-speech id. A row of the reply contains
the latent that a flow head generates from the hidden state of the previous row. Speech ends a few frames after the
model has detected its end. A named voice is a sequence of embedded rows, the first of which is the model's
begin-of-voice row. A recorded voice is that row, followed by rows with the latents of the recording.
"""

from dataclasses import dataclass, field

from stretto.family.base import Family, Task, Vocabulary, builder
from stretto.records.sampling import LatentSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, LatentSpec, Segment, StreamLayout
from stretto_contract.voice_details import VoiceDetails

NAME = "pocket_tts"
FRAME_RATE = 12.5
# The authors' `_MIN_FRAMES_BEFORE_EOS`, and `_estimate_max_gen_len` for a piece of 300 tokens.
MIN_FRAMES = 6
MAX_FRAMES = 1275
MAX_TEXT_CHARS = 4000  # in all pieces of a text
MAX_VOICE_S = 30.0
MAX_STEPS = 32
ONE_STEP = ("drifting", "pointwise")  # kinds of flow head without a time input
DEFAULT_STEPS = {"lsd": 1, "flow_matching": 16, "drifting": 1, "pointwise": 1}
# Frames from the detected end, for texts of at most four words and for longer ones.
SHORT_TAIL_ROWS = 5
TAIL_ROWS = 3
FEW_WORDS = 4
# Speakers of the VCTK corpus and recordings of Common Voice, as the authors' code and the corpus state. Voices whose
# recordings have no such facts are left out.
VOICE_DETAILS = {
    **dict.fromkeys("anna azelma eponine eve fantine jane mary vera".split(), VoiceDetails("en", "female")),
    **dict.fromkeys("charles george michael paul".split(), VoiceDetails("en", "male")),
    "giovanni": VoiceDetails("it"),
    "juergen": VoiceDetails("de-DE"),
    "lola": VoiceDetails("es"),
}


@dataclass(frozen=True)
class TextRules:
    """Changes to a text before it is tokenized, which differ by release.

    Attributes:
        replaced: Characters and their replacements, which may be empty.
        drops_semicolons: True to replace semicolons with commas.
        ends_with_mark: True to add a full stop to a text that does not end with a punctuation mark.
        pads_short: True to put spaces before a text of fewer than five words.
    """

    replaced: tuple[tuple[str, str], ...] = ()
    drops_semicolons: bool = False
    ends_with_mark: bool = True
    begins_with_capital: bool = True
    pads_short: bool = False


@dataclass(frozen=True)
class PocketVocabulary(Vocabulary):
    """Ids, voices and hyperparameters of a release.

    Attributes:
        num_text_ids: Number of rows in the text table.
        voices: Name and number of rows of each voice.
        flow: Kind of flow head, a key of `DEFAULT_STEPS`.
        temperature: Default variance of the noise.
        tail_rows: Number of frames from the detected end of speech; None to choose it based on the number of words.
        clones: True if the checkpoint can encode voice recordings.
        has_voice_begin: True if a separate row precedes the latents of a recorded voice.
    """

    num_text_ids: int = 4001
    num_words: int = 32
    voices: tuple[tuple[str, int], ...] = ()
    flow: str = "lsd"
    temperature: float = 0.3
    tail_rows: int | None = None
    max_model_len: int = 2048
    text: TextRules = field(default_factory=TextRules)
    clones: bool = False
    has_voice_begin: bool = True

    def __post_init__(self) -> None:
        if self.flow not in DEFAULT_STEPS:
            raise ValueError(f"flow must be one of {', '.join(DEFAULT_STEPS)}, got {self.flow!r}")

    @property
    def bos(self) -> int:
        """Id of the row before the first frame."""
        return self.num_text_ids

    @property
    def frames(self) -> range:
        """Frame ids: the usual id, and the id of the frame in which speech ends."""
        return range(self.bos + 1, self.bos + 3)

    @property
    def end(self) -> int:
        return self.frames.stop

    @property
    def recorded(self) -> int:
        """Id of rows with the latents of a recorded voice."""
        return self.end + 1

    @property
    def voice_begin(self) -> int:
        """Id of the row before the latents of a recorded voice."""
        return self.recorded + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, including the ids of voice rows."""
        return self.voice_begin + 1 + sum(rows for _, rows in self.voices)

    def voice(self, name: str) -> range:
        """Return the ids of the rows of a voice."""
        start = self.voice_begin + 1
        for voice, rows in self.voices:
            if voice == name:
                return range(start, start + rows)
            start += rows
        raise KeyError(name)

    @property
    def layout(self) -> StreamLayout:
        steps = range(1, 2) if self.flow in ONE_STEP else range(1, MAX_STEPS + 1)
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(self.frames,),
            delays=(0,) * (1 + self.num_words),
            codebook_streams=tuple(range(1, 1 + self.num_words)),
            latents=LatentSpec(self.num_words, steps, range(self.recorded, self.recorded + self.clones)),
        )

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            text=SegmentSampling(temperature=0.0),
            audio=SegmentSampling(temperature=self.temperature, min_rows=MIN_FRAMES, max_rows=MAX_FRAMES),
            latents=LatentSampling(DEFAULT_STEPS[self.flow], TAIL_ROWS if self.tail_rows is None else self.tail_rows),
        )


def pocket_tts(vocabulary: PocketVocabulary) -> Family:
    """Return the family for a vocabulary."""
    system = ("audio",) if vocabulary.clones else ()
    return Family(
        name=NAME,
        layout=vocabulary.layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), vocabulary.sampling, system=system),),
        codec="pocket",
        end_of_reply=vocabulary.end,
        voices=tuple(name for name, _ in vocabulary.voices),
        voice_details=VOICE_DETAILS,
        max_text_chars=MAX_TEXT_CHARS,
        options=("piece",),
        max_audio_s=MAX_VOICE_S if vocabulary.clones else 0.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=1,
        steady_chunk_frames=12,
        tail=NO_TAIL,
    )


build = builder(PocketVocabulary, pocket_tts)
