"""PersonaPlex prompts: a voice and a role as frames, each followed by silence.

On a codebook with delay d, row c + d carries the code of frame c. As in the authors' code, the first frame of a
recording is lost, because rows up to d carry the initial id. The authors' server fails if the role is empty. Here, a
prompt without a role contains the silence after the voice, followed by the silence after the role.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.codecs.mimi import MimiCodec, require_mimi
from stretto.encoders.loudness import normalised
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.live_audio import LiveInput
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import Piece, PromptRows, Template
from stretto.family.text import SENTENCEPIECE_FILE, SentencePieceTokenizer, check_text, sentencepiece_at
from stretto_kyutai.kyutai_stt.family import PAD
from stretto_kyutai.moshi.prompt import MoshiTemplate, codes_in, live_input
from stretto_kyutai.personaplex.family import (
    MAX_PROMPT_ROWS,
    MAX_ROLE_CHARS,
    NAME,
    SILENCE,
    SILENT_FRAMES,
    SINE,
    PersonaPlexVocabulary,
)

MIN_VOICE_S = 1.0
MAX_VOICE_S = 30.0
LOUDNESS = -24.0  # LUFS; target loudness of voice recordings
TAG = "<system>"


class PersonaPlexTemplate(MoshiTemplate):
    """PersonaPlex prompt template."""

    def __init__(self, vocabulary: PersonaPlexVocabulary, tokenizer: SentencePieceTokenizer, codec: MimiCodec):
        super().__init__(vocabulary, codec)
        self._voices = vocabulary
        self._tokenizer = tokenizer
        self._rate = codec.spec.sample_rate
        self._firsts = np.array([0, *vocabulary.first_codes])
        self._recordings = CachedEncoder(self._encode_voice)

    def first_rows(self, pieces: Sequence[Piece], voice: str | None, track: tuple[int, ...] = ()) -> PromptRows:
        """Return the prompt that sets the voice and the role.

        Args:
            pieces: A recording of the voice and the text of the role; either may be missing.
            voice: Name of the voice if there is no recording.
        """
        recording = next((piece for piece in pieces if piece.text is None), None)
        if recording is not None:
            vectors = range(0)
            frames = self._recorded(recording)
        elif voice is not None:
            vectors = self._voices.vectors(voice)
            frames = self._named(voice)
        else:
            expected = "a system turn with audio (this checkpoint has no named voices)"
            raise InvalidRequest("messages", expected, "none")
        silence = self._frames([PAD] * SILENT_FRAMES)
        num_rows = len(vectors) + len(frames) - max(self.vocabulary.delays) + 2 * len(silence)
        role = next((piece for piece in pieces if piece.text is not None), None)
        tokens = [] if role is None else self._tokens(role, MAX_PROMPT_ROWS - num_rows)
        rows, tail = self._delayed(np.concatenate([frames, silence, self._frames(tokens), silence]))
        head = np.full((len(vectors), rows.shape[1]), self.vocabulary.nothing, np.int32)
        head[:, 0] = vectors
        return PromptRows(np.concatenate([head, rows]), delayed_tail=tail, track=track, num_reference_rows=1)

    def _frames(self, texts: Sequence[int], codes: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """Return frames, int [n, S], for text ids [n] and the model's codes (by default, silence)."""
        of_model = [SILENCE] * len(texts) if codes is None else codes
        frames = [[text, *frame, *SINE] for text, frame in zip(texts, of_model, strict=True)]
        return np.array(frames, int).reshape(-1, len(self._firsts)) + self._firsts

    def _named(self, voice: str) -> np.ndarray:
        """Return the stored last frames of a published voice, [1 + D, S]."""
        (published,) = (published for published in self._voices.voices if published.name == voice)
        return np.array(published.frames) + self._firsts

    def _recorded(self, piece: Piece) -> np.ndarray:
        """Return a voice's recording of V frames, after D frames of initial ids for the delay, [D + V, S]."""
        if piece.pcm is None:
            codes = codes_in(piece, self.vocabulary)
            seconds = codes.shape[1] * self.encoder.samples_per_frame / self._rate
        else:
            seconds = len(piece.pcm) / self._rate
        if not MIN_VOICE_S <= seconds <= MAX_VOICE_S:
            expected = f"the recording of a voice of {MIN_VOICE_S:g} to {MAX_VOICE_S:g} s"
            raise InvalidRequest(piece.path, expected, f"{seconds:.2f} s")
        if piece.pcm is not None:
            codes = self._recordings.encode(piece.pcm)
        frames = self._frames([PAD] * codes.shape[1], codes.T.tolist())
        initial = [self.vocabulary.initial_ids] * (1 + max(self.vocabulary.delays))
        return np.concatenate([initial, frames[1:]])

    def _encode_voice(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording, float32 [n], to codes [K, V]."""
        return self.encoder.encode_all(normalised(pcm, self._rate, LOUDNESS))

    def _tokens(self, piece: Piece, most: int) -> list[int]:
        """Return the token ids of a role; raise InvalidRequest if there are more than `most`."""
        assert piece.text is not None
        if not piece.text.strip():
            return []
        check_text(piece.text, piece.path, MAX_ROLE_CHARS)
        tokens = self._tokenizer.encode(tagged(piece.text))
        if len(tokens) > most:
            raise InvalidRequest(piece.path, f"at most {most} tokens with this voice", f"{len(tokens)} tokens")
        return tokens

    def _delayed(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Apply the delays to frames [D + n, S], of which undelayed streams begin with frame D.

        Returns:
            Rows, int32 [n, S], and the ids that delayed streams carry in the following rows, [D, S - 1].
        """
        delays = (0, *self.vocabulary.delays, *self.vocabulary.delays)
        most = max(self.vocabulary.delays)
        extended = np.concatenate([frames, frames[len(frames) - most :]])  # undelayed streams do not use these rows
        columns = [extended[most - delay : len(extended) - delay, k] for k, delay in enumerate(delays)]
        rows = np.stack(columns, 1).astype(np.int32)
        num_rows = len(frames) - most
        return rows[:num_rows], rows[num_rows:, 1:] if most else None


def tagged(text: str) -> str:
    """Return a role's text enclosed in tags, unless it already begins and ends with a tag."""
    text = text.strip()
    return text if text.startswith(TAG) and text.endswith(TAG) else f"{TAG} {text} {TAG}"


def vocabulary_at(checkpoint: Path) -> PersonaPlexVocabulary:
    """Return the vocabulary of a checkpoint."""
    return PersonaPlexVocabulary.from_record(config_at(checkpoint)[VOCABULARY])


def open_live_input(checkpoint: Path, codec: MimiCodec) -> LiveInput:
    """Return the live-audio input, whose encoder uses the checkpoint's Mimi weights."""
    return live_input(vocabulary_at(checkpoint), codec)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and Mimi weights."""
    tokenizer = sentencepiece_at(checkpoint / SENTENCEPIECE_FILE)
    return PersonaPlexTemplate(vocabulary_at(checkpoint), tokenizer, require_mimi(codec, NAME))
