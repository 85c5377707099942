"""CosyVoice 3 prompts: instruction, transcript of the recording, text to speak, codes of the recording.

For the layout, see `CosyVoice3LM.inference` and `CosyVoiceFrontEnd` in https://github.com/FunAudioLLM/CosyVoice. With a
style instruction, the recording's transcript and codes are left out, as in `inference_instruct2`. Text that is streamed
during the reply is laid out as in `inference_bistream`: five ids, fifteen codes, and so on, beginning with the
recording's transcript and codes.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from stretto.codecs.base import Codec
from stretto.encoders.voice_spectra import MEL_RATE
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import Subwords, TextTokenizer, check_text, without_leading_line_ends
from stretto.records.chunk import Sound
from stretto.records.prompt import MAX_PART_CHARS
from stretto_cosyvoice3.family import (
    MAX_ROWS_PER_TOKEN,
    MIN_ROWS_PER_TOKEN,
    MIN_VOICE_S,
    NUM_GROUP_CODES,
    NUM_WORDS,
    SOS,
    TASK,
    CosyVoice3Vocabulary,
)
from stretto_cosyvoice3.voices import (
    FOLDER,
    NamedVoice,
    RecordingEncoder,
    latest_chunks,
    read_named_voices,
    sound_of,
)

HELPFUL = "You are a helpful assistant."
MARKERS = ("<|endofprompt|>", "<|endofsystem|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


class CosyVoice3Template:
    """CosyVoice 3 prompt template."""

    def __init__(
        self,
        family: Family,
        vocabulary: CosyVoice3Vocabulary,
        subwords: Subwords,
        recording_encoder: RecordingEncoder,
        named: Mapping[str, NamedVoice] | None = None,
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._subwords = subwords
        self._named = named or {}
        self._voices = CachedEncoder(recording_encoder.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the last text, in the voice of a recording before it, or else in `voice`."""
        *before, piece = pieces
        assert piece.text is not None, task.name
        if manner.is_open:  # tokenised later, together with the parts that follow
            check_text(piece.text, piece.path, MAX_PART_CHARS)
        spoken = without_leading_line_ends(piece.text) if manner.is_streaming else piece.text
        text = [] if manner.is_open else self._ids(spoken, piece.path)
        recorded = self._recorded(before, voice)
        sound = recorded.sound
        words = recorded.words
        instruction = f"{HELPFUL} {manner.instruct}" if manner.instruct else HELPFUL
        style = [*self._ids(instruction, "options.instruct"), self._vocabulary.end_of_prompt]
        if recorded.style and not manner.instruct:
            style = recorded.style
        codes = list[int]()
        if words and not manner.instruct:
            codes = (sound.arrays()[0] + self._vocabulary.codes.start).tolist()
        ends = self._vocabulary.ends
        if manner.is_streaming:
            track = [*text, *(() if manner.is_open else (ends[TASK],))]
            return self._in_groups([ends[SOS], *style], words if codes else [], codes, track, latest_chunks(sound))
        ids = [ends[SOS], *style, *(words if codes else []), *text, ends[TASK], *codes]
        return PromptRows(
            stream0_rows(self._family.layout, ids),
            min_rows=MIN_ROWS_PER_TOKEN * len(text),
            max_rows=MAX_ROWS_PER_TOKEN * len(text),
            sound=latest_chunks(sound),
        )

    def _in_groups(
        self, head: list[int], words: list[int], codes: list[int], text: list[int], sound: Sound
    ) -> PromptRows:
        """Return a prompt whose text is read in groups. Groups that contain only the recording are prompt rows.

        `words` and `codes` are ids of the recording. `text` includes the end id if the text is complete.
        """
        rows = list(head)
        num_groups = min(len(words) // NUM_WORDS, len(codes) // NUM_GROUP_CODES)
        for group in range(num_groups):
            rows += words[group * NUM_WORDS :][:NUM_WORDS] + codes[group * NUM_GROUP_CODES :][:NUM_GROUP_CODES]
        left = codes[num_groups * NUM_GROUP_CODES :], words[num_groups * NUM_WORDS :], text
        return PromptRows(stream0_rows(self._family.layout, rows), sound=sound, track=tuple(chain(*left)))

    def _recorded(self, pieces: list[Piece], voice: str | None) -> NamedVoice:
        """Return the recording in a system turn, with its words if given, or else the named voice."""
        recordings = [piece for piece in pieces if piece.text is None]
        if not recordings and (named := self._named.get(voice or "")) is not None:
            return named
        if not recordings:
            expected = "a system turn with audio (this model speaks in the voice of a recording)"
            raise InvalidRequest("messages", expected, "none")
        piece = recordings[0]
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "a voice recording as a file or samples", "codes")
        if len(piece.pcm) < MIN_VOICE_S * MEL_RATE:
            raise InvalidRequest(piece.path, f"at least {MIN_VOICE_S:g} s", f"{len(piece.pcm) / MEL_RATE:.4f} s")
        words = [self._ids(piece.text, piece.path) for piece in pieces if piece.text]
        try:
            sound = sound_of(self._voices.encode(piece.pcm))
        except InvalidRequest as error:
            raise InvalidRequest(piece.path, error.expected, error.got) from None
        return NamedVoice(sound, [], words[0] if words else [])

    def _ids(self, text: str, path: str) -> list[int]:
        """Return the ids of a text; raise InvalidRequest if it is blank or contains a marker of the model."""
        for marker in MARKERS:
            if marker in text:
                raise InvalidRequest(path, "none of the model's markers", marker)
        if not text.strip():
            raise InvalidRequest(path, "text of at least one character", repr(text[:40]))
        return self._subwords.ids(text, path)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and recording encoder."""
    vocabulary = CosyVoice3Vocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    if codec.spec.codebook_size != vocabulary.num_codes:
        raise CheckpointError(f"{checkpoint}: expected a codec of {vocabulary.num_codes} codes, got {codec.spec}")
    recording_encoder = RecordingEncoder(checkpoint / FOLDER, vocabulary.num_codes)
    named = read_named_voices(checkpoint, vocabulary.voices, vocabulary.end_of_prompt)
    return CosyVoice3Template(
        family, vocabulary, Subwords(TextTokenizer.at(checkpoint), family), recording_encoder, named
    )
