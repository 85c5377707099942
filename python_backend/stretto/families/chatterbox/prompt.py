"""Prompts of Chatterbox's T3: the rows of a voice, the text with its positions, and the start of speech twice.

Text is normalised as by `punc_norm`. Its words are tokenized one by one with `[SPACE]` between them, so that no text
can spell a marker. Layout: `ChatterboxTTS.generate` and `T3.inference` of https://github.com/resemble-ai/chatterbox,
which read the start of speech twice, both times at position 0.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.base import Family, Task
from stretto.families.chatterbox.family import END_OF_TEXT, SPACE, START_OF_TEXT, ChatterboxVocabulary
from stretto.families.conversation import Piece
from stretto.families.prompting import PLAIN, Manner, PromptRows, Template, stream0_rows
from stretto.families.registry import VOCABULARY, config_at, read_family
from stretto.families.text import TOKENIZER_FILE, TextTokenizer, check_text

# Punctuation that is rare in training, with its replacement, applied in this order.
EVENED = (
    ("...", ", "),
    ("…", ", "),
    (":", ","),
    (" - ", ", "),
    (";", ", "),
    ("—", "-"),
    ("–", "-"),
    (" ,", ","),
    ("“", '"'),
    ("”", '"'),
    ("‘", "'"),
    ("’", "'"),
)
ENDS = (".", "!", "?", "-", ",")


def normalised(text: str) -> str:
    """Return `text` normalised as in training: capitalised, with single spaces, plain punctuation and a final mark."""
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for uncommon, plain in EVENED:
        text = text.replace(uncommon, plain)
    text = text.rstrip(" ")
    return text if text.endswith(ENDS) else f"{text}."


class ChatterboxTemplate:
    """Prompt template of Chatterbox."""

    def __init__(self, family: Family, vocabulary: ChatterboxVocabulary, tokenizer: TextTokenizer):
        self._family, self._known, self._tokenizer = family, vocabulary, tokenizer
        spaces = [token_id for token_id, spelling in tokenizer.tokens.items() if spelling == SPACE]
        if not spaces:
            raise CheckpointError(f"{TOKENIZER_FILE}: expected a token {SPACE}")
        self._space = spaces[0]

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the only piece's text, to be spoken by the voice called `voice`."""
        (piece,) = pieces
        assert piece.text is not None, task.name
        assert voice is not None, task.name
        known, layout = self._known, self._family.layout
        words = [START_OF_TEXT, *self._words(piece.text, piece.path), END_OF_TEXT]
        text, start = stream0_rows(layout, words), stream0_rows(layout, [known.start] * 2)
        text[:, 1] = known.text_positions[: len(words)]
        start[:, 1] = known.speech_positions.start
        rows = np.concatenate([stream0_rows(layout, list(known.voice(voice))), text, start])
        return PromptRows(rows, voice=known.voices.index(voice))

    def _words(self, text: str, path: str) -> list[int]:
        """Return the ids of a text without begin and end; raise InvalidRequest if there are none or too many."""
        check_text(text, path, self._family.max_text_chars)
        if not text.strip():
            raise InvalidRequest(path, "text of at least one character", repr(text))
        ids = list[int]()
        for word in normalised(text).split(" "):
            ids += [self._space, *self._tokenizer.encode(word)]
        most = self._known.num_text_positions - 2
        if len(ids) > 1 + most:
            raise InvalidRequest(path, f"text of at most {most} tokens", f"{len(ids) - 1} tokens")
        return ids[1:]


def open_chatterbox(checkpoint: Path) -> ChatterboxTemplate:
    """Return the template with a checkpoint's tokenizer."""
    config = config_at(checkpoint)
    vocabulary = ChatterboxVocabulary.from_record(config[VOCABULARY])
    return ChatterboxTemplate(read_family(config), vocabulary, TextTokenizer.at(checkpoint, spells_bytes=False))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template of `open_chatterbox`; raise CheckpointError if the codec has other voices."""
    folder, number = checkpoint / "codec", codec.spec.num_voices
    names = config_at(folder).get("voices")
    if number != len(family.voices) or names != list(family.voices):
        expected = f"the voices of the model, {', '.join(family.voices)}"
        raise CheckpointError(f"{folder}: expected {expected}, got {number} called {names}")
    return open_chatterbox(checkpoint)
