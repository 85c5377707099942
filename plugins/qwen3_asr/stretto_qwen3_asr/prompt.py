r"""Prompts of Qwen3-ASR, in the format of its published chat template.

    <|im_start|>system\nBerlin, Spree<|im_end|>\n
    <|im_start|>user\n<|audio_start|><|audio_pad|> … <|audio_end|><|im_end|>\n
    <|im_start|>assistant\nlanguage German<asr_text>Der Fluss

The system turn contains words that may occur in the recording; it is empty without any. The reply begins with the
language. If the request names the language, it is part of the prompt instead, as in the authors' code. The beginning of
a transcript (the option `beginning`) follows it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.family.audio_format import KEY
from stretto.family.base import Family, Task
from stretto.family.log_mel import SAMPLE_RATE, MelFormat, input_audio
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import TextTokenizer, check_no_markers, check_text
from stretto_qwen3_asr.family import AsrVocabulary

SHORTEST = SAMPLE_RATE // 2  # samples; silence follows shorter recordings, as in transformers


class AsrTemplate:
    """Prompt template of Qwen3-ASR."""

    def __init__(self, family: Family, vocabulary: AsrVocabulary, tokenizer: TextTokenizer, audio_format: MelFormat):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._audio_format = audio_format

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the context, the recording and, if the request names it, the language."""
        *context, recording = pieces
        if recording.pcm is None:
            raise InvalidRequest(recording.path, "audio samples (the model reads no codes)", "codes")
        vocabulary = self._vocabulary
        words = "".join(self._checked(piece) for piece in context)
        line_end = self._tokenizer.encode("\n")
        ids = [vocabulary.im_start, *self._context_ids(words, context), vocabulary.im_end, *line_end]
        ids += [vocabulary.im_start, *self._tokenizer.encode("user\n"), vocabulary.audio_start]
        pcm = np.pad(recording.pcm, (0, max(0, SHORTEST - len(recording.pcm))))
        audio = input_audio(pcm, recording.path, len(ids), self._audio_format)
        ids += [vocabulary.audio_pad] * audio.num_rows
        ids += [vocabulary.audio_end, vocabulary.im_end, *line_end, vocabulary.im_start]
        beginning = self._tokenizer.encode(manner.beginning or "")
        markers = {token_id: name for token_id, name in vocabulary.markers.items() if token_id != vocabulary.asr_text}
        check_no_markers(beginning, markers, "options.beginning")
        if manner.language is None:
            # Tokenised together, because a beginning with a space may share a token with the end of the line.
            ids += self._tokenizer.encode(f"assistant\n{manner.beginning or ''}")
        else:
            named = self._tokenizer.encode(f"assistant\nlanguage {manner.language.capitalize()}")
            ids += [*named, vocabulary.asr_text, *beginning]
        return PromptRows(stream0_rows(self._family.layout, ids), audios=(audio,))

    def _checked(self, piece: Piece) -> str:
        text = piece.text or ""
        check_text(text, piece.path, self._family.max_text_chars)
        return text

    def _context_ids(self, words: str, context: Sequence[Piece]) -> list[int]:
        ids = self._tokenizer.encode(f"system\n{words}")
        check_no_markers(ids, self._vocabulary.markers, context[0].path if context else "")
        return ids


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template for a checkpoint."""
    config = config_at(checkpoint)
    vocabulary = AsrVocabulary.from_record(config[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_ids, checkpoint)
    return AsrTemplate(family, vocabulary, tokenizer, MelFormat.from_record(config[KEY]))
