"""OpusLM prompts, with one task per request: `[sos][task]`, the input, and the marker that begins the reply.

Task tokens are looked up by name, starting with the names in older releases. For the prompt formats, see `family.py`.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.encoders.xeus import XeusTokenizer, load_ssl_tokenizer
from stretto.errors import InvalidRequest
from stretto.families.opuslm.family import (
    ASSISTANT_OUTPUT,
    NUM_STREAMS,
    PAD,
    SOS_EOS,
    SYSTEM_PROMPT,
    USER_INPUT,
    VOICE_FRAMES,
)
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, codes_of, frame_rows, stream0_rows
from stretto.family.text import Subwords, TextTokenizer
from stretto.streams.layout import Segment

GAP = NUM_STREAMS - 1


class InputCodes(CachedEncoder):
    """Cached encoder of audio to codes, int64 [S, T]: semantic codes and codec codes, cut to the same length."""

    def __init__(self, codec: Codec, ssl: XeusTokenizer):
        def both(pcm: np.ndarray) -> np.ndarray:
            semantic = ssl.encode(pcm)
            acoustic = codec.encode(pcm)
            num_frames = min(len(semantic), acoustic.shape[1])
            return np.concatenate([semantic[None, :num_frames], acoustic[:, :num_frames]])

        super().__init__(both)


class SegmentWriter:
    """Writer of prompt segments for one checkpoint."""

    def __init__(self, family: Family, subwords: Subwords, codec: Codec, ssl: XeusTokenizer | None):
        self.family = family
        self._subwords = subwords
        self._encoder = None if ssl is None else InputCodes(codec, ssl)

    def ids(self, *ids: int) -> np.ndarray:
        """Return rows [n, 9] with `ids` on stream 0."""
        return stream0_rows(self.family.layout, list(ids))

    def task_id(self, *names: str) -> int:
        """Return the id of the first of these tasks that the checkpoint has; raise InvalidRequest if it has none."""
        task_ids = [self.family.markers[name] for name in names if name in self.family.markers]
        if not task_ids:
            raise InvalidRequest("task", "a task for which this checkpoint has a token", f"one that needs <{names[0]}>")
        return task_ids[0]

    def marker(self, name: str) -> np.ndarray:
        """Return the row that begins a segment: `codec_ssl`, `text_bpe` or `spk`."""
        return self.ids(self.family.markers[name])

    def piece(self, piece: Piece) -> np.ndarray:
        """Return the rows of a text or recording, including the pads that separate it from the next segment."""
        if piece.text is None:
            return self.audio(piece)
        return np.concatenate([self.text(piece), self.ids(*[PAD] * GAP)])

    def text(self, piece: Piece) -> np.ndarray:
        """Return the rows of a text, without pads after it."""
        assert piece.text is not None, piece.path
        return np.concatenate([self.marker("text_bpe"), self.ids(*self._subwords.ids(piece.text, piece.path))])

    def audio(self, piece: Piece) -> np.ndarray:
        """Return the rows of a recording: a marker and T + 8 rows."""
        return np.concatenate([self.marker("codec_ssl"), self._frames(self._codes(piece))])

    def voice(self, piece: Piece) -> np.ndarray:
        """Return the rows that define the speaking voice: a marker and 508 rows."""
        rows = self._frames(self._codes(piece)[:, :VOICE_FRAMES])
        return np.concatenate([self.marker("spk"), rows, self.ids(*[PAD] * (VOICE_FRAMES + GAP - len(rows)))])

    def _frames(self, codes: np.ndarray) -> np.ndarray:
        rows = frame_rows(self.family.layout, codes, (PAD,) * NUM_STREAMS)
        rows[rows[:, 0] == self.family.layout.audio[0].start, 0] = PAD
        return rows

    def _codes(self, piece: Piece) -> np.ndarray:
        """Return codes [9, T]: one semantic code and eight codec codes per frame."""
        codes = codes_of(piece, self.family, None if self._encoder is None else self._encoder.encode)
        if piece.pcm is not None and codes.shape[1] == 0:
            raise InvalidRequest(piece.path, "audio of at least one frame (0.025 s)", f"{len(piece.pcm)} samples")
        return codes


ROLES = {"system": SYSTEM_PROMPT, "user": USER_INPUT, "assistant": ASSISTANT_OUTPUT}


class DialogueTemplate:
    """Prompt template of the dialogue model."""

    def __init__(self, segments: SegmentWriter):
        self._segments = segments

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the turns and the reply's first rows; audio in a system turn is the assistant's voice."""
        segments = self._segments
        name = "text_dialogue" if task.name == "text_dialogue" else "audio_dialogue"
        parts = [segments.ids(SOS_EOS, segments.task_id(name))]
        for piece in pieces:
            is_voice = piece.role == "system" and piece.text is None
            parts += [segments.ids(ROLES[piece.role]), segments.voice(piece) if is_voice else segments.piece(piece)]
        modality = "text_bpe" if task.segments[0] is Segment.TEXT else "codec_ssl"
        speaker = USER_INPUT if task.name == "asr" else ASSISTANT_OUTPUT
        parts += [segments.ids(speaker), segments.marker(modality)]
        return PromptRows(np.concatenate(parts))


TASK_TOKENS = {
    "asr": ("codec_ssl_asr", "asr"),
    "text_lm": ("textlm",),
    "audio_lm": ("codec_ssl_audiolm", "audiolm"),
}
PLAIN_TTS = ("codec_ssl_plain_tts", "plain_tts")
VOICE_TTS = ("codec_ssl_tts", "tts")


class OpusTemplate:
    """Prompt template of the base model."""

    def __init__(self, segments: SegmentWriter):
        self._segments = segments

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for a task; for `tts`, audio in a system turn defines the voice."""
        segments = self._segments
        last = pieces[-1]
        names: tuple[str, ...]
        if task.name == "tts":
            voices = [segments.voice(piece) for piece in pieces[:-1]]
            names = VOICE_TTS if voices else PLAIN_TTS
            parts = [segments.piece(last), *voices, segments.marker("codec_ssl")]
        else:
            names = TASK_TOKENS[task.name]
            parts = [segments.text(last) if task.name == "text_lm" else segments.audio(last)]
            parts += [segments.marker("text_bpe")] if task.name == "asr" else []
        head = segments.ids(SOS_EOS, segments.task_id(*names))
        rows = np.concatenate([head, *parts])
        if task.name != "audio_lm":
            return PromptRows(rows)
        # The reply begins one row after stream 0 of the last frame; delayed streams complete that frame meanwhile.
        return PromptRows(rows[:-GAP], delayed_tail=rows[-GAP:, 1:])


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template for the base or dialogue model that uses the checkpoint's tokenizers."""
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    ssl = load_ssl_tokenizer(checkpoint, len(family.layout.audio[0]), device)
    segments = SegmentWriter(family, subwords, codec, ssl)
    return DialogueTemplate(segments) if family.name == "opuslm_dialogue" else OpusTemplate(segments)
