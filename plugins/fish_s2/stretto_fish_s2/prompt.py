"""Fish Audio S2 prompts: a system turn with the voice, turns that are already spoken, and the text to speak.

    <start>system
    convert the provided text to speech reference to the following:

    Text:
    <|speaker:0|>The words of the recording.

    Speech:
    frames of the recording<end>
    <start>user
    Earlier text.<end>
    <start>assistant
    <voice>frames of its speech<end>
    <start>user
    The text to speak.<end>
    <start>assistant
    <voice> ─►

Without a recording, the system turn has only the first five words. Each part is tokenised on its own, as by the
authors. Several voices are several tagged lines before the frames of all of them.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, check_codes, code_rows, stream0_rows
from stretto.family.text import TextTokenizer, check_no_markers, check_text
from stretto_fish_s2.family import FishVocabulary

SYSTEM = "convert the provided text to speech"
VOICE = f"{SYSTEM} reference to the following:\n\nText:\n"
SPEECH = "\n\nSpeech:\n"
TAG = re.compile(r"<\|speaker:\d+\|>")
ALMOST_TAG = re.compile(r"<\|?\s*speaker\b[^<>]*>", re.IGNORECASE)  # text that a client may have intended as a tag
CONTROL = re.compile(r"<\|[^<>|]+\|>")


def in_lines(text: str, path: str) -> str:
    """Return a text with each speaker's part on a line of its own. A text without tags is unchanged.

    Raises:
        InvalidRequest: Words precede the first tag, or a tag is misspelt.
    """
    for tag in ALMOST_TAG.finditer(text):
        if not TAG.fullmatch(tag.group()):
            raise InvalidRequest(path, "speakers as <|speaker:N|>, where N is a number", shown(tag.group()))
    starts = [tag.start() for tag in TAG.finditer(text)]
    if not starts:
        return text
    if before := text[: starts[0]].strip():
        raise InvalidRequest(path, "no words before the first tag <|speaker:N|>", shown(before))
    return "\n".join(text[start:stop].strip() for start, stop in pairwise([*starts, len(text)]))


class FishTemplate:
    """Fish Audio S2 prompt template."""

    def __init__(self, family: Family, vocabulary: FishVocabulary, tokenizer: TextTokenizer, codec: Codec):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._encoder = CachedEncoder(codec.encode)
        # Tokens that no text may contain. Those that the tokenizer marks as special are read as plain characters.
        tokens = {token_id: name for token_id, name in tokenizer.tokens.items() if CONTROL.fullmatch(name)}
        self._markers = {token_id: name for token_id, name in tokens.items() if not TAG.fullmatch(name)}

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the system turn, of earlier turns, and of the last text."""
        vocabulary = self._vocabulary
        described = [piece for piece in pieces if piece.role == "system"]
        *earlier, last = (piece for piece in pieces if piece.role != "system")
        parts = [self._opened("system"), *self._system(described), self._end()]
        for index, piece in enumerate(earlier):
            is_text = index % 2 == 0
            if (piece.role == "user") != is_text or (piece.text is not None) != is_text:
                expected = "user turns with text, each followed by an assistant turn with its speech"
                raise InvalidRequest(
                    piece.path, expected, f"{'audio' if piece.text is None else 'text'} ({piece.role})"
                )
            parts += self._user(piece) if is_text else self._spoken(piece)
        if len(earlier) % 2:
            raise InvalidRequest(last.path, "an assistant turn with the speech of the text before", "another text")
        parts += [*self._user(last), self._opened("assistant"), self._rows(vocabulary.voice)]
        return PromptRows(np.concatenate(parts))

    def _system(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Return the rows of the system turn: the recordings of voices and their words, if there are any."""
        if not pieces:
            return [self._rows(*self._tokenizer.encode(SYSTEM))]
        words = [piece for piece in pieces if piece.text is not None]
        recordings = [piece for piece in pieces if piece.text is None]
        if not (words and recordings):
            got = "audio only" if recordings else "text only"
            raise InvalidRequest(pieces[0].path, "the audio of a voice together with its words", got)
        text = self._text(words[0])
        tagged = text if TAG.search(text) else f"<|speaker:0|>{text}"
        written = (self._rows(*self._tokenizer.encode(text)) for text in (VOICE, tagged, SPEECH))
        return [*written, self._frames(recordings[0])]

    def _user(self, piece: Piece) -> list[np.ndarray]:
        text = in_lines(self._text(piece), piece.path)
        return [self._opened("user"), self._rows(*self._tokenizer.encode(text)), self._end()]

    def _spoken(self, piece: Piece) -> list[np.ndarray]:
        return [self._opened("assistant"), self._rows(self._vocabulary.voice), self._frames(piece), self._end()]

    def _text(self, piece: Piece) -> str:
        """Return the text of a part; raise InvalidRequest if it is blank, too long or has a control token."""
        text = piece.text or ""
        path = piece.path
        check_text(text, path, self._family.max_text_chars)
        if not text.strip():
            raise InvalidRequest(path, "text with at least one non-space character", shown(text))
        check_no_markers(self._tokenizer.encode(text), self._markers, path)
        return text

    def _frames(self, piece: Piece) -> np.ndarray:
        """Return the rows of a recording, or of codes."""
        codes = piece.codes
        if codes is not None:
            check_codes(codes, self._family, piece.path)
        else:
            assert piece.pcm is not None, piece.path
            codes = self._encoder.encode(piece.pcm)
            if codes.shape[1] == 0:
                raise InvalidRequest(piece.path, "audio of at least one frame", f"{len(piece.pcm)} samples")
        return code_rows(self._family.layout, codes)

    def _opened(self, role: str) -> np.ndarray:
        return self._rows(self._vocabulary.turn_start, *self._tokenizer.encode(f"{role}\n"))

    def _end(self) -> np.ndarray:
        return self._rows(self._vocabulary.turn_end, *self._tokenizer.encode("\n"))

    def _rows(self, *ids: int) -> np.ndarray:
        return stream0_rows(self._family.layout, ids)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = FishVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return FishTemplate(family, vocabulary, tokenizer, codec)
