"""VibeVoice Realtime (Microsoft, https://github.com/microsoft/VibeVoice): speech from text that is still being written.

    tts     voice ─► t0 t1 t2 t3 t4 │ x0 … x5 │ t5 … t9 │ x6 … x11 │ t10 t11 │ x12 x13 … [end]

A row is a text token or a frame of 133 ms. Text comes in windows of five tokens, each followed by six frames. After the
last window, frames follow until the model ends the reply. A text model of a few layers reads the text alone. Its hidden
states are the text rows of the speech model, which also reads the frames. The latent of a frame is generated from the
row before it, and is guided by a request that reads only the frames.

A voice is published as the keys and values of both models, and as those of the unconditional request's first row.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from stretto.family.base import DrawRules, Family, Task, UnconditionalContext, Vocabulary, builder
from stretto.family.input_tracks import TextTrack
from stretto.family.mechanism import FrameFilter, Mechanism
from stretto.family.plugin import lazy
from stretto.records.sampling import LatentSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, LatentSpec, Segment, StreamLayout
from stretto_contract.voice_details import VoiceDetails

NAME = "vibevoice_realtime"
FRAME_RATE = 7.5
# text tokens of a window, and frames after it
NUM_WORDS = 5
NUM_FRAMES = 6
# as in the authors' demo
DEFAULT_STEPS = 5
DEFAULT_GUIDANCE = 1.5
STEPS = range(2, 51)
MAX_ROWS = 8192
MAX_IDS = 1 << 20
MAX_NUMBERS = 4096
MAX_VOICES = 64
MAX_VOICE_ROWS = 2048
MAX_TEXT_CHARS = 10_000
END_OF_TEXT = 0  # ends the ids of a text; not a row
# The authors name a voice by its language, its name and its gender, such as `en-Carter_man`. They list these languages.
VOICE = re.compile("(?P<language>de|en|fr|it|jp|kr|nl|pl|pt|sp)-[a-z0-9]+_(?P<gender>man|woman)")
CODES = {"jp": "ja", "kr": "ko", "sp": "es"}
GENDERS = {"man": "male", "woman": "female"}


@dataclass(frozen=True)
class VoiceRows:
    """Name of a voice, in lower case, and numbers of its rows."""

    name: str
    num_text_rows: int
    num_rows: int

    def __post_init__(self) -> None:
        for name in ("num_text_rows", "num_rows"):
            if not 1 <= getattr(self, name) <= MAX_VOICE_ROWS:
                raise ValueError(f"{name} must be in [1, {MAX_VOICE_ROWS}], got {getattr(self, name)}")


@dataclass(frozen=True)
class VibeVoiceRealtimeVocabulary(Vocabulary):
    """Ids of text, of three kinds of rows, and of the rows of each voice. The first voice is the default."""

    num_text_ids: int = 151936
    num_numbers: int = 64
    voices: tuple[VoiceRows, ...] = ()
    max_model_len: int = MAX_ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.num_text_ids <= MAX_IDS or not 1 <= self.num_numbers <= MAX_NUMBERS:
            raise ValueError(
                f"num_text_ids and num_numbers must be in [1, {MAX_IDS}] and [1, {MAX_NUMBERS}], "
                f"got {self.num_text_ids} and {self.num_numbers}"
            )
        names = {voice.name for voice in self.voices}
        if len(names) < len(self.voices) or len(names) > MAX_VOICES:
            raise ValueError(f"voices: expected at most {MAX_VOICES} different names, got {len(self.voices)} voices")

    @property
    def frame(self) -> int:
        return self.num_text_ids

    @property
    def word(self) -> int:
        """Id of a row with a text token, whose id is on the text stream."""
        return self.frame + 1

    @property
    def end(self) -> int:
        return self.word + 1

    @property
    def first_rows(self) -> tuple[int, ...]:
        """Id of each voice's first row, and the number of ids. A row for unconditional requests follows each voice."""
        return tuple(accumulate((voice.num_rows + 1 for voice in self.voices), initial=self.end + 1))

    @property
    def vocab_size(self) -> int:
        return self.first_rows[-1]

    @property
    def text_stream(self) -> int:
        """Input-only stream of the text tokens."""
        return 2 + self.num_numbers

    @property
    def layout(self) -> StreamLayout:
        """Streams of a row: its kind, the words of a latent, and the text token.

        The last word of a latent is the number 1 in the first frame, where the decoder begins. The first word of a text
        row is the number of the voice, as an integer.
        """
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(range(self.frame, self.frame + 1),),
            delays=(0,) * (2 + self.num_numbers),
            codebook_streams=tuple(range(1, 2 + self.num_numbers)),
            num_input_only=1,
            extra=((self.word,),),
            latents=LatentSpec(1 + self.num_numbers, STEPS, has_unit_noise=True, num_other_words=1),
        )


@dataclass(frozen=True, kw_only=True)
class TextWindows(TextTrack):
    """Windows of `num_words` text tokens, each followed by `num_frames` frames, which alternate in a reply.

    The kind of a row follows from its index in the reply and from the length of the text. After the last token, all
    rows are frames. Only a row after a frame may end the reply, but it may do so even if there is text left.

    Attributes:
        word: Id of a row with a text token.
        first_rows: Id of the first row of each voice, and the end of these ids.
        num_words: Number of tokens in a window.
        num_frames: Number of frames after a window.
    """

    word: int
    frame: int
    first_rows: tuple[int, ...]
    num_text_ids: int
    num_words: int = NUM_WORDS
    num_frames: int = NUM_FRAMES

    open: ClassVar = lazy(f"{__package__}.mechanism.track:WindowTrack.begin")
    random_text: ClassVar = lazy(f"{__package__}.mechanism.track:random_text")

    def max_text_ids(self, num_rows: int) -> int:
        """Return the maximum number of text tokens in a reply of `num_rows` rows before its last.

        The frames after each window, including the last one, must fit.
        """
        num_windows, remainder = divmod(max(num_rows - self.num_frames, 0), self.num_words + self.num_frames)
        return num_windows * self.num_words + min(remainder, self.num_words)

    def index_of(self, number: Any) -> Any:
        """Return the index in the reply of text token `number`, an integer or an array."""
        return number + self.num_frames * (number // self.num_words)

    def within_window(self, index: Any) -> tuple[Any, Any]:
        """Return the index in its window of row `index` of a reply, and a text row's token number; ints or arrays."""
        period = self.num_words + self.num_frames
        row_of_window = index % period
        return row_of_window, index // period * self.num_words + row_of_window

    def is_word(self, index: Any, num_words: Any) -> Any:
        """Return True if row `index` of a reply to `num_words` tokens is a text row; integers or arrays."""
        row_of_window, number = self.within_window(index)
        return (row_of_window < self.num_words) & (number < num_words)


@dataclass(frozen=True)
class WindowRules(DrawRules):
    """Rules by which the rows of windows are sampled."""

    windows: TextWindows

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:WindowDraw")

    def sampled_ids(self, ids: Sequence[int]) -> list[int]:
        """Return `ids` without the id of text rows, which are not sampled."""
        return [token for token in ids if token != self.windows.word]

    def num_text_entries(self, max_rows: int) -> int:
        """Return the maximum number of text tokens of a reply."""
        return max_rows


@dataclass(frozen=True, kw_only=True)
class WindowContext(UnconditionalContext):
    """Rules for unconditional requests, which read a row of the voice and the frames."""

    windows: TextWindows

    pair: ClassVar = lazy(f"{__package__}.mechanism.pair:WindowPair")


SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, max_rows=MAX_ROWS),
    latents=LatentSampling(DEFAULT_STEPS),
    guidance_scale=DEFAULT_GUIDANCE,
)


def voice_details(names: Iterable[str]) -> dict[str, VoiceDetails]:
    """Return the language and gender that the names of voices contain, by name in lower case."""
    matches = {name: match for name in names if (match := VOICE.fullmatch(name))}
    return {
        name: VoiceDetails(CODES.get(match["language"], match["language"]), GENDERS[match["gender"]])
        for name, match in matches.items()
    }


def vibevoice_realtime(vocabulary: VibeVoiceRealtimeVocabulary) -> Family:
    """Return the family for a vocabulary."""
    layout = vocabulary.layout
    windows = TextWindows(
        vocabulary.text_stream,
        layout.pad_id,
        END_OF_TEXT,
        is_usual=True,
        word=vocabulary.word,
        frame=vocabulary.frame,
        first_rows=vocabulary.first_rows,
        num_text_ids=vocabulary.num_text_ids,
    )
    return Family(
        name=NAME,
        layout=layout,
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING),),
        codec="vibevoice",
        end_of_reply=vocabulary.end,
        guided_streams=layout.codebook_streams,
        unconditional=WindowContext(null_id=0, keep_first=0, keep_last=1, windows=windows),
        voices=tuple(voice.name for voice in vocabulary.voices),
        voice_details=voice_details(voice.name for voice in vocabulary.voices),
        max_text_chars=MAX_TEXT_CHARS,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=1,
        steady_chunk_frames=6,
        tail=NO_TAIL,
        track=windows,
        mechanism=Mechanism(frames=FrameFilter()),
        drawing=WindowRules(windows),
    )


build = builder(VibeVoiceRealtimeVocabulary, vibevoice_realtime)
