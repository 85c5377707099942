"""MOSS-TTS prompts: a user turn with fields, and the start of the assistant's audio.

    <start>user
    <user_inst>
    - Reference(s):
    [S1]:
    <audio> recorded … recorded <end of audio>  a recording of the voice, or None
    - Instruction:
    …
    - Text:
    Hello.
    </user_inst><end>
    <start>assistant
    <audio> ─►

A field without a value is `None`. The K codebooks of a recording are delayed like those of a reply, so the text id
`recorded` is in K - 1 more rows than there are frames. The layout follows the authors' processor.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto.family.text import TextTokenizer, check_no_markers, check_text
from stretto.streams.layout import delay_codes
from stretto_moss.moss_tts.cleaning import cleaned
from stretto_moss.moss_tts.family import LANGUAGES, MossVocabulary

FIELDS = ("Reference(s)", "Instruction", "Tokens", "Quality", "Sound Event", "Ambient Sound", "Language", "Text")
# Level to which a recording is scaled, in dB relative to full scale, and limit on the change.
LEVEL_DB = -20.0
MAX_GAIN_DB = 3.0
EPS = 1e-9
# Fields of the vocabulary with ids that a client's text may not have.
MARKERS = ("pad", "turn_start", "turn_end", "audio_start", "audio_end", "recorded", "slot", "delay")


def levelled(pcm: np.ndarray) -> np.ndarray:
    """Return samples, float32 [n], with their power moved towards LEVEL_DB by at most MAX_GAIN_DB."""
    level = 10 * np.log10(np.mean(np.square(pcm), dtype=np.float64) + EPS)
    gain = np.clip(LEVEL_DB - level, -MAX_GAIN_DB, MAX_GAIN_DB)
    return (pcm * 10 ** (gain / 20)).astype(np.float32)


def recorded_codes(piece: Piece, family: Family, encoder: CachedEncoder) -> np.ndarray:
    """Return the codes of a recording of a voice, [K, T]; raise InvalidRequest if they are not the model's.

    Args:
        piece: The recording, as samples or codes. The codes of a reply may have those of its text stream, too.
    """
    if piece.codes is None:
        assert piece.pcm is not None, piece.path
        return encoder.encode(piece.pcm)
    codes = piece.codes
    size = family.layout.codebook_size
    num_codebooks = family.num_codebooks
    max_frames = int(family.max_audio_s * family.frame_rate)
    if len(codes) == family.layout.num_output_streams:
        codes = codes[-num_codebooks:]
    if len(codes) != num_codebooks or codes.shape[1] > max_frames or codes.max() >= size:
        expected = f"{num_codebooks} lists of at most {max_frames} codes in [0, {size})"
        raise InvalidRequest(piece.path, expected, f"{len(codes)} of {codes.shape[1]}, up to {codes.max()}")
    return codes


class MossTemplate:
    """MOSS-TTS prompt template."""

    def __init__(self, family: Family, vocabulary: MossVocabulary, tokenizer: TextTokenizer, codec: Codec):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._encoder = CachedEncoder(lambda pcm: codec.encode(levelled(pcm)))
        markers = {getattr(vocabulary, name) for name in MARKERS}
        self._markers = {token_id: name for token_id, name in tokenizer.tokens.items() if token_id in markers}

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the user turn, and those of the assistant turn up to its first frame."""
        *voices, text = pieces
        check_text(manner.instruct, "options.instruct", self._family.max_text_chars)
        vocabulary = self._vocabulary
        values = dict.fromkeys(FIELDS, "None")
        values |= {"Instruction": manner.instruct.strip() or "None", "Text": self._text(text)}
        for path, name in (("options.instruct", "Instruction"), (text.path, "Text")):
            check_no_markers(self._tokenizer.encode(values[name]), self._markers, path)
        values["Language"] = "None" if manner.language is None else LANGUAGES[manner.language]
        values["Reference(s)"] = "[S1]:\n" if voices else "None"
        written = "".join(f"- {name}:\n{value}\n" for name, value in values.items())
        before = f"user\n<user_inst>\n{written}</user_inst>"
        after = ""
        recorded = np.zeros((0, 1 + vocabulary.num_codebooks), np.int32)
        if voices:
            before, _, after = before.partition("[S1]:\n")
            before = f"{before}[S1]:\n"
            recorded = self._recorded(voices[0])
        parts = [
            self._rows(vocabulary.turn_start, *self._tokenizer.encode(before)),
            recorded,
            self._rows(*self._tokenizer.encode(after), vocabulary.turn_end, *self._tokenizer.encode("\n")),
            self._rows(vocabulary.turn_start, *self._tokenizer.encode("assistant\n"), vocabulary.audio_start),
        ]
        return PromptRows(np.concatenate(parts))

    def _text(self, piece: Piece) -> str:
        assert piece.text is not None, piece.path
        check_text(piece.text, piece.path, self._family.max_text_chars)
        text = cleaned(piece.text)
        if not text:
            raise InvalidRequest(piece.path, "text with at least one letter or digit", repr(piece.text[:20]))
        if len(text) > (most := self._family.max_text_chars):
            expected = f"at most {most} characters with spaces between scripts"
            raise InvalidRequest(piece.path, expected, f"{len(text)} characters")
        return text

    def _recorded(self, piece: Piece) -> np.ndarray:
        """Return the rows of a recording, from the start of audio to its end."""
        vocabulary = self._vocabulary
        first_ids = np.array([ids.start for ids in self._family.layout.audio[1:]])
        codes = recorded_codes(piece, self._family, self._encoder) + first_ids[:, None]
        num_codebooks, num_frames = codes.shape
        rows = self._rows(
            vocabulary.audio_start, *[vocabulary.recorded] * (num_frames + num_codebooks - 1), vocabulary.audio_end
        )
        delayed = delay_codes(codes, self._family.layout.delays[1:], -1)
        rows[1:-1, 1:] = np.where(delayed < 0, rows[1:-1, 1:], delayed)
        return rows

    def _rows(self, *ids: int) -> np.ndarray:
        """Return rows, int32 [n, 1 + K], with text ids and the pads of all codebooks."""
        rows = np.tile(np.array((0, *self._vocabulary.pads), np.int32), (len(ids), 1))
        rows[:, 0] = ids
        return rows


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = MossVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    if len(tokenizer.tokens) > vocabulary.num_text_ids:
        raise CheckpointError(
            f"{checkpoint}: expected at most {vocabulary.num_text_ids} tokens, got {len(tokenizer.tokens)}"
        )
    return MossTemplate(family, vocabulary, tokenizer, codec)
