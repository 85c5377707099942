"""IndexTTS-2 prompts: vectors of a voice and an emotion, two rows of speed, the text, and the start.

The layout follows `UnifiedVoice.prepare_gpt_inputs` in https://github.com/index-tts/index-tts. The decoder needs the
text and the vectors, too, because it computes the hidden states of the codes itself.
"""

import re
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import SENTENCEPIECE_FILE, PlainTokenizer, check_text, sentencepiece_at
from stretto.records.chunk import Sound
from stretto.records.prompt import MAX_MAGNITUDE, InputAudio
from stretto_indextts2.family import COUNTED_CODE, END_OF_TEXT, START_OF_TEXT, IndexVocabulary
from stretto_indextts2.text import tokenizable
from stretto_indextts2.voices import EMOTIONS, EncodedVoice, RecordingEncoder, load_recording_encoder

EMOTION = re.compile(rf"\s*({'|'.join(EMOTIONS)})\s+(0?\.\d+|[01](?:\.\d*)?)\s*", re.IGNORECASE)
INSTRUCT = "options.instruct"


def emotion_weights(instruct: str) -> np.ndarray:
    """Return the weight of each emotion in an instruction such as `happy 0.6, surprised 0.2`, float32 [8].

    Raises:
        InvalidRequest: If the instruction has another form, or the weights are more than 1 together.
    """
    weights = np.zeros(len(EMOTIONS))
    for phrase in instruct.split(","):
        match = EMOTION.fullmatch(phrase)
        if match is None:
            expected = f"emotions with weights, such as 'happy 0.6, surprised 0.2', of {', '.join(EMOTIONS)}"
            raise InvalidRequest(INSTRUCT, expected, shown(instruct))
        weights[EMOTIONS.index(match[1].lower())] += float(match[2])
    if weights.sum() > 1 + 1e-6:
        raise InvalidRequest(INSTRUCT, "weights of at most 1 together", f"{weights.sum():g}")
    return weights.astype(np.float32)


class IndexTemplate:
    """IndexTTS-2 prompt template."""

    def __init__(
        self,
        family: Family,
        vocabulary: IndexVocabulary,
        tokenizer: PlainTokenizer,
        recording_encoder: RecordingEncoder,
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._recording_encoder = recording_encoder
        self._voices = CachedEncoder(recording_encoder.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows for the last text, in the voice of the system turn's recording.

        A recording beside the text gives the emotion.
        """
        piece = next(piece for piece in pieces if piece.text is not None)
        assert piece.text is not None, task.name
        recordings = {other.role: other for other in pieces if other is not piece}
        speaker = recordings.get("system")
        if speaker is None:
            expected = "a system turn with audio (this model speaks in the voice of a recording)"
            raise InvalidRequest("messages", expected, "none")
        mood = recordings.get("user")
        weights = self._weights(manner, mood is not None)
        text = self._ids(piece.text, piece.path)
        voice_of_speaker = self._encoded(speaker)
        emotion = voice_of_speaker.emotion
        if weights is not None:
            emotion = self._recording_encoder.mixed_emotion(emotion, voice_of_speaker.style, weights)
        elif mood is not None:
            alpha = np.float32(1.0 if manner.exaggeration is None else manner.exaggeration)
            emotion = emotion + alpha * (self._encoded(mood).emotion - emotion)
        rows = voice_of_speaker.latents + emotion
        if not (np.abs(rows) <= MAX_MAGNITUDE).all():  # false for NaN
            expected = f"a voice of finite numbers of magnitude at most {MAX_MAGNITUDE:g}"
            raise InvalidRequest(speaker.path, expected, "others")
        sound = Sound.from_arrays(voice_of_speaker.tokens, voice_of_speaker.mel, voice_of_speaker.style)
        audios = (InputAudio(0, len(rows), rows),)
        return PromptRows(self._rows(text), audios=audios, sound=sound.with_prompt(text, rows))

    def _rows(self, text: list[int]) -> np.ndarray:
        """Return the ids of all rows, int32 [P, 2]."""
        vocabulary = self._vocabulary
        layout = self._family.layout
        voice = [vocabulary.codes[COUNTED_CODE]] * vocabulary.num_voice_rows
        words = stream0_rows(layout, [START_OF_TEXT, *text, END_OF_TEXT])
        words[:, 1] = vocabulary.text_positions[: len(words)]
        start = stream0_rows(layout, [vocabulary.start])
        start[:, 1] = vocabulary.code_positions.start
        return np.concatenate([stream0_rows(layout, [*voice, *reversed(vocabulary.speeds)]), words, start])

    def _weights(self, manner: Manner, has_mood: bool) -> np.ndarray | None:
        """Return the weights of emotions that a request names, or None if it names none."""
        if manner.exaggeration is not None and not has_mood:
            expected = "no value without a recording of the emotion beside the text"
            raise InvalidRequest("options.exaggeration", expected, manner.exaggeration)
        if manner.instruct and has_mood:
            raise InvalidRequest(INSTRUCT, "no value beside a recording of the emotion", shown(manner.instruct))
        return emotion_weights(manner.instruct) if manner.instruct else None

    def _encoded(self, piece: Piece) -> EncodedVoice:
        """Return the encoding of a recording; raise InvalidRequest if it cannot be encoded."""
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "a recording as a file or samples", "codes")
        try:
            return EncodedVoice.from_array(self._voices.encode(piece.pcm))
        except InvalidRequest as error:
            raise InvalidRequest(piece.path, error.expected, error.got) from None

    def _ids(self, text: str, path: str) -> list[int]:
        """Return the ids of a text without its start and end."""
        check_text(text, path, self._family.max_text_chars)
        tokens = self._tokenizer.encode(tokenizable(text, path))
        ids = [token for token in tokens if token > END_OF_TEXT]  # without start and end, as in the authors' code
        if not ids:
            raise InvalidRequest(path, "text with at least one character to speak", shown(text))
        max_tokens = self._vocabulary.max_text_tokens
        if len(ids) > max_tokens:
            raise InvalidRequest(path, f"text of at most {max_tokens} tokens", f"{len(ids)} tokens")
        return ids


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and recording encoder."""
    vocabulary = IndexVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = sentencepiece_at(checkpoint / SENTENCEPIECE_FILE)
    if len(tokenizer.tokens) > vocabulary.num_text_ids or codec.spec.codebook_size != vocabulary.num_codes:
        expected = f"a tokenizer of at most {vocabulary.num_text_ids} ids, and a codec of {vocabulary.num_codes} codes"
        raise CheckpointError(f"{checkpoint}: expected {expected}, got {len(tokenizer.tokens)} ids and {codec.spec}")
    return IndexTemplate(family, vocabulary, tokenizer, load_recording_encoder(checkpoint, device))
