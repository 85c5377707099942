r"""Prompts of VibeVoice-ASR, in the format of its published chat template.

    <|im_start|>system\nYou are a helpful assistant …<|im_end|>\n
    <|im_start|>user\n<|object_ref_start|><|box_start|> … <|object_ref_end|>\n
    This is a 7.20 seconds audio, with extra info: Berlin, Spree\n\nPlease transcribe it with these keys: …<|im_end|>\n

The system turn of a request is the extra info: names and terms that may occur in the recording. The reply begins with
the head of the assistant's turn.
"""

from pathlib import Path

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import TextTokenizer, check_no_markers, check_text
from stretto.records.prompt import InputAudio
from stretto_vibevoice.codec import SAMPLE_RATE
from stretto_vibevoice.vibevoice_asr.encoders import RecordingEncoders, load_encoders
from stretto_vibevoice.vibevoice_asr.family import AsrVocabulary

SYSTEM = "system\nYou are a helpful assistant that transcribes audio input into text output in JSON format."
KEYS = "transcribe it with these keys: Start time, End time, Speaker ID, Content"


class AsrTemplate:
    """Prompt template of VibeVoice-ASR."""

    def __init__(
        self, family: Family, vocabulary: AsrVocabulary, tokenizer: TextTokenizer, encoders: RecordingEncoders
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._encoders = encoders

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the instructions, the recording and the request for its transcript."""
        *context, recording = pieces
        if recording.pcm is None:
            raise InvalidRequest(recording.path, "audio samples (the model reads no codes)", "codes")
        vocabulary = self._vocabulary
        line_end = self._tokenizer.encode("\n")
        request = self._request_ids(context, len(recording.pcm) / SAMPLE_RATE)
        ids = [vocabulary.im_start, *self._tokenizer.encode(SYSTEM), vocabulary.im_end, *line_end]
        ids += [vocabulary.im_start, *self._tokenizer.encode("user\n"), vocabulary.begin]
        features = self._encoders.encode(recording.pcm, manner.seed)
        audio = InputAudio(len(ids), len(features), features)
        ids += [vocabulary.audio] * audio.num_rows
        ids += [vocabulary.end, *request, vocabulary.im_end, *line_end]
        return PromptRows(stream0_rows(self._family.layout, ids), audios=(audio,))

    def _request_ids(self, context: list[Piece], seconds: float) -> list[int]:
        """Return the ids of the text after a recording."""
        path = context[0].path if context else ""
        info = "".join(piece.text or "" for piece in context).strip()
        check_text(info, path, self._family.max_text_chars)
        asked = f" with extra info: {info}\n\nPlease {KEYS}" if info else f" please {KEYS}"
        ids = self._tokenizer.encode(f"\nThis is a {seconds:.2f} seconds audio,{asked}")
        check_no_markers(ids, self._vocabulary.markers, path)
        return ids


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and encoders."""
    vocabulary = AsrVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_ids, checkpoint)
    return AsrTemplate(family, vocabulary, tokenizer, load_encoders(checkpoint, device))
