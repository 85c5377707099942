"""Chatterbox T3 prompts: the rows of a voice, the text with its positions, and the start of speech twice.

Text is normalised as in `punc_norm`. Its words are tokenized one by one with `[SPACE]` between them, so that no text
can spell a marker. Turbo and Nano use a byte-level BPE instead, where tags are tokens. For Multilingual, the rules of
the language are first applied to the text.

The layout follows `ChatterboxTTS.generate` and `T3.inference` in https://github.com/resemble-ai/chatterbox, which read
the start of speech twice, both times at position 0.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.encoders.voice_spectra import MEL_RATE
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at, read_family
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import TOKENIZER_FILE, TextTokenizer, check_text
from stretto.records.prompt import InputAudio
from stretto_chatterbox.family import (
    END_OF_TEXT,
    SPACE,
    START_OF_TEXT,
    TURBO,
    ChatterboxVocabulary,
    TurboVocabulary,
)
from stretto_chatterbox.languages import FOLDER as LANGUAGE_FOLDER
from stretto_chatterbox.languages import LanguageTokenizers, open_languages
from stretto_chatterbox.voices import (
    EncodedVoice,
    RecordingEncoder,
    TurboRecordingEncoder,
    load_recording_encoder,
)

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
# Punctuation that Turbo and Nano leave unchanged.
UNCHANGED_BY_TURBO = ("...", " - ", ";")
EXAGGERATION = 0.5  # default for recordings, as in the authors' code
ENDS = (".", "!", "?", "-", ",")
MULTILINGUAL_ENDS = (*ENDS, "\u3001", "\uff0c", "\u3002", "\uff1f", "\uff01")  # 、，。？！


def normalised(text: str, unchanged: tuple[str, ...] = (), ends: tuple[str, ...] = ENDS) -> str:
    """Normalise `text` as in training: capitalised, with single spaces, plain punctuation and a final mark.

    Args:
        text: Not blank.
        unchanged: Punctuation that is not replaced.
    """
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for uncommon, plain in EVENED:
        if uncommon not in unchanged:
            text = text.replace(uncommon, plain)
    text = text.rstrip(" ")
    return text if text.endswith(ends) else f"{text}."


class Recordings:
    """Recorded voices, cached by the samples of the recordings."""

    def __init__(self, recording_encoder: RecordingEncoder):
        self.recording_encoder = recording_encoder
        self._voices = CachedEncoder(recording_encoder.encode)

    def voice(self, piece: Piece) -> EncodedVoice:
        """Return the voice of a recording; raise InvalidRequest if it cannot be encoded."""
        recording_encoder = self.recording_encoder
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "a voice recording as a file or samples", "codes")
        least = recording_encoder.min_s * MEL_RATE
        if len(piece.pcm) < least or (recording_encoder.excludes_min and len(piece.pcm) == least):
            expected = f"{'more than' if recording_encoder.excludes_min else 'at least'} {recording_encoder.min_s} s"
            raise InvalidRequest(piece.path, expected, f"{len(piece.pcm) / MEL_RATE:.4f} s")
        try:
            encoded = self._voices.encode(piece.pcm)
        except InvalidRequest as error:
            raise InvalidRequest(piece.path, error.expected, error.got) from None
        return recording_encoder.voice(encoded)


class ChatterboxTemplate:
    """Prompt template of Chatterbox English and of Multilingual, which alone has `languages`."""

    def __init__(
        self,
        family: Family,
        vocabulary: ChatterboxVocabulary,
        tokenizer: TextTokenizer,
        recording_encoder: RecordingEncoder | None = None,
        languages: LanguageTokenizers | None = None,
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._languages = languages
        self._recordings = None if recording_encoder is None else Recordings(recording_encoder)
        spaces = [token_id for token_id, spelling in tokenizer.tokens.items() if spelling == SPACE]
        if not spaces:
            raise CheckpointError(f"{TOKENIZER_FILE}: expected a token {SPACE}")
        self._space = spaces[0]

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the last text, in the voice of a recording before it, or else in `voice`."""
        *recordings, piece = pieces
        assert piece.text is not None, task.name
        assert voice is not None, task.name
        vocabulary = self._vocabulary
        layout = self._family.layout
        words = [START_OF_TEXT, *self._words(piece.text, piece.path, manner.language), END_OF_TEXT]
        text = stream0_rows(layout, words)
        start = stream0_rows(layout, [vocabulary.start] * 2)
        text[:, 1] = vocabulary.text_positions[: len(words)]
        start[:, 1] = vocabulary.speech_positions.start
        rows = np.concatenate([stream0_rows(layout, list(vocabulary.voice(voice))), text, start])
        last = vocabulary.num_voice_rows - 1
        if not recordings:
            changed = () if manner.exaggeration is None else (InputAudio(last, 1, self._emotion(manner.exaggeration)),)
            return PromptRows(rows, audios=changed, voice=vocabulary.voices.index(voice))
        assert self._recordings is not None, "checked by the family"
        recorded = self._recordings.voice(recordings[0])
        exaggeration = EXAGGERATION if manner.exaggeration is None else manner.exaggeration
        vectors = np.concatenate([recorded.rows, self._emotion(exaggeration)])
        return PromptRows(rows, audios=(InputAudio(0, len(vectors), vectors),), sound=recorded.sound)

    def _emotion(self, exaggeration: float) -> np.ndarray:
        """Return the row for the emotion, float32 [1, H]."""
        assert self._recordings is not None, "checked by the family"
        return self._recordings.recording_encoder.emotion_row(exaggeration)

    def _words(self, text: str, path: str, language: str | None) -> list[int]:
        """Return the ids of a text, without those that mark its start and end."""
        check_text(text, path, self._family.max_text_chars)
        if not text.strip():
            raise InvalidRequest(path, "text of at least one character", repr(text))
        if self._languages is None:
            parts: list[str | int] = [normalised(text)]
        else:
            assert language is not None, "checked with the options"
            text = normalised(text, ends=MULTILINGUAL_ENDS)
            parts = self._languages.pieces(text, language, self._family.max_text_chars)
        ids = list[int]()
        for text_or_id in parts:
            if isinstance(text_or_id, int):
                ids.append(text_or_id)
                continue
            first, *others = text_or_id.split(" ")
            ids += self._tokenizer.encode(first)
            for word in others:
                ids += [self._space, *self._tokenizer.encode(word)]
        most = self._vocabulary.num_text_positions - 2
        if len(ids) > most:
            raise InvalidRequest(path, f"text of at most {most} tokens", f"{len(ids)} tokens")
        return ids


class TurboTemplate:
    """Prompt template of Chatterbox Turbo and Nano."""

    def __init__(
        self,
        family: Family,
        vocabulary: TurboVocabulary,
        tokenizer: TextTokenizer,
        recording_encoder: RecordingEncoder | None = None,
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._recordings = None if recording_encoder is None else Recordings(recording_encoder)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the last text, in the voice of a recording before it, or else in `voice`."""
        *recordings, piece = pieces
        assert piece.text is not None, task.name
        assert voice is not None, task.name
        vocabulary = self._vocabulary
        text = self._ids(piece.text, piece.path)
        recorded = None
        codes = np.array(vocabulary.voices[voice])
        if recordings:
            assert self._recordings is not None, "checked by the family"
            recorded = self._recordings.voice(recordings[0])
            codes = recorded.codes
        ids = [vocabulary.speaker(voice), *(vocabulary.codes.start + codes).tolist(), *text, vocabulary.start]
        rows = stream0_rows(self._family.layout, ids)
        if recorded is None:
            return PromptRows(rows, voice=list(vocabulary.voices).index(voice))
        return PromptRows(rows, audios=(InputAudio(0, 1, recorded.rows),), sound=recorded.sound)

    def _ids(self, text: str, path: str) -> list[int]:
        check_text(text, path, self._family.max_text_chars)
        if not text.strip():
            raise InvalidRequest(path, "text of at least one character", repr(text))
        return self._tokenizer.encode(normalised(text.strip(), UNCHANGED_BY_TURBO))


def open_turbo(checkpoint: Path, device: str = "cpu") -> TurboTemplate:
    """Return the Turbo or Nano template for a checkpoint, with its networks that encode recordings."""
    config = config_at(checkpoint)
    vocabulary = TurboVocabulary.from_record(config[VOCABULARY])
    recording_encoder = (
        load_recording_encoder(checkpoint, 1, config["hidden_size"], device, TurboRecordingEncoder)
        if vocabulary.clones
        else None
    )
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return TurboTemplate(read_family(config), vocabulary, tokenizer, recording_encoder)


def open_chatterbox(checkpoint: Path, device: str = "cpu") -> ChatterboxTemplate:
    """Return the template for a checkpoint, with its networks that encode recordings."""
    config = config_at(checkpoint)
    vocabulary = ChatterboxVocabulary.from_record(config[VOCABULARY])
    recording_encoder = (
        load_recording_encoder(checkpoint, vocabulary.num_voice_rows, config["hidden_size"], device)
        if vocabulary.clones
        else None
    )
    tokenizer = TextTokenizer.at(checkpoint, spells_bytes=False)
    languages = None
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    if vocabulary.languages:
        tokens = {name: token_id for token_id, name in tokenizer.tokens.items()}
        lacking = [code for code in vocabulary.languages if f"[{code}]" not in tokens]
        if lacking:
            raise CheckpointError(f"{checkpoint}: {TOKENIZER_FILE}: expected language tokens, got no [{lacking[0]}]")
        languages = open_languages(checkpoint / LANGUAGE_FOLDER, tokens)
    return ChatterboxTemplate(read_family(config), vocabulary, tokenizer, recording_encoder, languages)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template for a checkpoint; raise CheckpointError if its codec has other voices."""
    folder = checkpoint / "codec"
    number = codec.spec.num_voices
    names = config_at(folder).get("voices")
    if number != len(family.voices) or names != list(family.voices):
        expected = f"the voices of the model, {', '.join(family.voices)}"
        raise CheckpointError(f"{folder}: expected {expected}, got {number} voices, {names}")
    release = config_at(checkpoint)[VOCABULARY].get("release")
    return open_turbo(checkpoint, device) if release == TURBO else open_chatterbox(checkpoint, device)
