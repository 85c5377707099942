"""VibeVoice prompts: an instruction, up to four voices from recordings, and the lines of a script.

    instruction │ " Voice input:" (" Speaker 0:" [begin] voice … [end]) … │ " Text input:" (" Speaker 0: …") … │
    " Speech output:" [begin]

The layout follows vibevoice/processor/vibevoice_processor.py in https://github.com/microsoft/VibeVoice. Each part is
tokenized separately. The recordings in the conversation are the voices of the speakers, in order.
"""

import re
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import TextTokenizer, check_text
from stretto_vibevoice.vibevoice.family import MAX_FRAMES, VibeVoiceVocabulary

INSTRUCTION = (
    " Transform the text provided by various speakers into speech output, "
    "utilizing the distinct voice of each respective speaker.\n"
)
VOICES = " Voice input:\n"
SCRIPT = " Text input:\n"
SPEECH = " Speech output:\n"
LINE = re.compile(r"^Speaker\s+(\d{1,3})\s*:\s*(.*)$", re.IGNORECASE)
MAX_SPEAKERS = 4
MIN_AUDIO_S = 0.4
ROWS_PER_PROMPT_ROW = 2  # maximum length of a reply (the authors' `max_length_times`)


class VibeVoiceTemplate:
    """VibeVoice prompt template."""

    def __init__(self, family: Family, vocabulary: VibeVoiceVocabulary, tokenizer: TextTokenizer, codec: Codec):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._rate = codec.spec.input_rate or codec.spec.sample_rate
        self._encoder = CachedEncoder(codec.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of a conversation: the recordings of the speakers, then the script."""
        voices = [piece for piece in pieces if piece.text is None]
        scripts = [piece for piece in pieces if piece.text is not None]
        odd = next((piece for piece in pieces if piece.role == "assistant"), None)
        if odd is not None or len(scripts) != 1 or len(voices) > MAX_SPEAKERS:
            expected = f"one text, and up to {MAX_SPEAKERS} recordings of speakers as turns of the user before it"
            roles = "a turn of the assistant" if odd else f"{len(scripts)} texts and {len(voices)} recordings"
            raise InvalidRequest("messages" if len(pieces) > 1 else scripts[0].path, expected, roles)
        lines = self._lines(scripts[0], len(voices) or MAX_SPEAKERS)
        parts = [self._text(INSTRUCTION)]
        if voices:
            parts.append(self._text(VOICES))
            for number, piece in enumerate(voices):
                parts += [self._text(f" Speaker {number}:"), self._ids([self._vocabulary.begin]), self._voice(piece)]
                parts += [self._ids([self._vocabulary.end]), self._text("\n")]
        script = [self._text(f" Speaker {number}: {text}\n") for number, text in lines]
        parts += [self._text(SCRIPT), *script, self._text(SPEECH), self._ids([self._vocabulary.begin])]
        rows = np.concatenate(parts)
        return PromptRows(rows, max_rows=min(ROWS_PER_PROMPT_ROW * len(rows), MAX_FRAMES))

    def _lines(self, piece: Piece, num_speakers: int) -> list[tuple[int, str]]:
        """Return the speaker number, counted from 0, and the text of each line."""
        assert piece.text is not None
        check_text(piece.text, piece.path, self._family.max_text_chars)
        lines = list[tuple[int, str]]()
        for line in filter(None, map(str.strip, piece.text.splitlines())):
            match = LINE.match(line)
            number, text = (int(match[1]), match[2].strip()) if match else (lines[-1][0] if lines else 1, line)
            lines.append((number, text))
        if not any(text for _, text in lines):
            raise InvalidRequest(piece.path, "text of at least one character", shown(piece.text))
        lines = [(number, text) for number, text in lines if text]
        first = min(1, min(number for number, _ in lines))  # speakers are numbered from 1, or from 0 if there is a 0
        highest = max(number for number, _ in lines)
        if highest - first >= num_speakers:
            expected = f"speakers {first} to {first + num_speakers - 1}, as there are {num_speakers} voices"
            raise InvalidRequest(piece.path, expected, f"speaker {highest}")
        return [(number - first, text) for number, text in lines]

    def _voice(self, piece: Piece) -> np.ndarray:
        """Return the rows [n, S] of a recording."""
        words = self._encoded(piece) if piece.codes is None else piece.codes
        rows = self._ids([self._vocabulary.voice] * words.shape[1])
        rows[:, 1 : 1 + len(words)] = words.T
        return rows

    def _encoded(self, piece: Piece) -> np.ndarray:
        """Encode a recording to latents as words, int32 [D, T]."""
        assert piece.pcm is not None, "a recording has samples, codes or latents"
        if len(piece.pcm) < MIN_AUDIO_S * self._rate:
            got = f"{len(piece.pcm) / self._rate:.4f} s"
            raise InvalidRequest(piece.path, f"at least {MIN_AUDIO_S:g} s", got)
        return self._encoder.encode(piece.pcm)

    def _text(self, text: str) -> np.ndarray:
        return self._ids(self._tokenizer.encode(text))

    def _ids(self, ids: list[int]) -> np.ndarray:
        return stream0_rows(self._family.layout, ids)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = VibeVoiceVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return VibeVoiceTemplate(family, vocabulary, tokenizer, codec)
