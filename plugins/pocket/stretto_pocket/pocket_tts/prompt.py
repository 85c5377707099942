"""Pocket TTS prompts: the rows of a voice, the ids of the text, and the beginning-of-speech id.

The layout, the changes to the text and its pieces follow `_generate_audio_stream_short_text`, `prepare_text_prompt` and
`split_into_best_sentences` in the authors' code. Each piece of a text is a request of its own, which begins with the
voice. It contains the whole text and the piece's number.
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import PlainTokenizer, check_text, plain_tokenizer
from stretto_pocket.pocket_tts.family import (
    FEW_WORDS,
    FRAME_RATE,
    MAX_FRAMES,
    SHORT_TAIL_ROWS,
    TAIL_ROWS,
    PocketVocabulary,
    TextRules,
)

END_MARKS = ".!?…"
WEAK_MARKS = ",;:-–—"
CLOSERS = "\"'”’)]»"
STRAY_MARK = re.compile(r"([.!?…])\s*[,;:]")
SHORT_WORDS = 5
SHORT_PADDING = " " * 8
# A text is cut after a run of the tokens of SENTENCE_ENDS except the first, or within a sentence of more than
# MAX_PIECE_TOKENS tokens, after one of CLAUSE_ENDS.
SENTENCE_ENDS = ".!...?"
CLAUSE_ENDS = ",;:"
MAX_PIECE_TOKENS = 50
MAX_TOKENS = 300  # in a piece without punctuation marks: prompt and reply fit the model's length in every voice
NEAR = 8  # number of tokens whose text has at least two characters
# Maximum speech duration: a third of a second per token, plus two seconds.
TOKENS_PER_S = 3
SPARE_S = 2
# Voice recordings: minimum duration, fade-out, pause at the end, and level below the loudest frame that is silence.
MIN_VOICE_S = 0.4
FADE_S = 0.02
PAUSE_S = 0.08
SILENCE_DB = 35


def rewritten(text: str, rules: TextRules) -> str:
    """Return `text` on a single line, with the character replacements of a release."""
    text = text.strip()
    if rules.replaced:
        text = " ".join(text.translate({ord(one): other for one, other in rules.replaced}).split())
        text = STRAY_MARK.sub(r"\1", text)  # deleted quotes leave a comma after the end mark of a sentence
    text = text.replace("\n", " ").replace("\r", " ").replace("  ", " ")
    return text.replace(";", ",") if rules.drops_semicolons else text


def finished(text: str, rules: TextRules) -> str:
    """Return rewritten `text` with an initial capital and final punctuation, as in training."""
    if rules.begins_with_capital and not text[0].isupper():
        text = text[0].upper() + text[1:]
    if rules.ends_with_mark:
        text = ended(text)
    return SHORT_PADDING + text if rules.pads_short and len(text.split()) < SHORT_WORDS else text


def ended(text: str) -> str:
    """End `text` with a full stop unless it has an end mark. A final comma is replaced."""
    core = text.rstrip(f"{CLOSERS} ")
    closers = text[len(core) :].strip()
    if not core or core[-1] in END_MARKS:
        return text
    if core[-1] in WEAK_MARKS:
        return f"{core.rstrip(f'{WEAK_MARKS} ')}.{closers}"
    return f"{text}."


class TextPieces:
    """Division of a text into pieces that are spoken one by one.

    Sentences are decoded from their tokens and joined with spaces. A piece may therefore differ from the text in its
    spaces, and in characters that the tokenizer lacks.
    """

    def __init__(self, tokenizer: PlainTokenizer, prepare: Callable[[str], str]):
        self.tokenizer = tokenizer
        self.prepare = prepare
        self._sentence_ends, self._clause_ends = (
            {*tokenizer.encode(ends)[1:]} for ends in (SENTENCE_ENDS, CLAUSE_ENDS)
        )

    def cut(self, text: str) -> list[str]:
        """Split a text into pieces of whole sentences, of at most MAX_PIECE_TOKENS tokens each.

        A longer sentence is split after commas, and stays longer if it has none.
        """
        ids = self.tokenizer.encode(self.prepare(text).strip())
        pieces = list[str]()
        held = ""
        num_held = 0
        for num_tokens, sentence in self.parts(ids):
            if held and num_held + num_tokens <= MAX_PIECE_TOKENS:
                held = f"{held} {sentence}"
                num_held = num_held + num_tokens
                continue
            pieces.append(held.strip())
            held = sentence
            num_held = num_tokens
        pieces.append(held.strip())
        return [piece for piece in pieces if piece]

    def parts(self, ids: list[int]) -> list[tuple[int, str]]:
        """Return a text's sentences, those that are too long split into clauses, each after its number of tokens."""
        parts = list[tuple[int, str]]()
        for sentence in self.sentences(ids):
            clauses = [sentence]
            if len(sentence) > MAX_PIECE_TOKENS:
                text = self.tokenizer.decode(sentence)
                split = self._split(self.tokenizer.encode(text.strip()), self._clause_ends)
                clauses = split if len(split) > 1 else clauses
            parts += [(len(clause), self.tokenizer.decode(clause)) for clause in clauses]
        return parts

    def sentences(self, ids: list[int]) -> list[list[int]]:
        return self._split(ids, self._sentence_ends, keeps_decimals=True)

    def _split(self, ids: list[int], ends: Collection[int], keeps_decimals: bool = False) -> list[list[int]]:
        """Split token ids after each run of `ends`; with `keeps_decimals`, not within a decimal number."""
        starts = [at for at in range(1, len(ids)) if ids[at - 1] in ends and ids[at] not in ends]
        if keeps_decimals:
            starts = [at for at in starts if not self._is_decimal(ids, at)]
        return [ids[start:stop] for start, stop in zip([0, *starts], [*starts, len(ids)], strict=True)]

    def _is_decimal(self, ids: Sequence[int], at: int) -> bool:
        """Return True if the token at `at` follows the point of a decimal number."""
        before = self.tokenizer.decode(ids[max(0, at - NEAR) : at])[-2:]
        after = self.tokenizer.decode(ids[at : at + NEAR])[:1]
        return len(before) == 2 and before[0].isdigit() and before[1] == "." and after.isdigit()


def ended_on_pause(pcm: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return a recording, float32 [n] of at least 20 ms, that ends with 80 ms of silence as in training.

    Trailing silence (20 ms frames at least 35 dB below the loudest frame) is removed first. The last 20 ms fade out.
    The authors' code calls this `end_on_pause`.
    """
    frame = int(FADE_S * sample_rate)
    num_frames = len(pcm) // frame
    power = np.square(pcm[: num_frames * frame].reshape(num_frames, frame)).mean(1)
    decibels = 20 * np.log10(np.sqrt(power) + 1e-12)
    end = (np.flatnonzero(decibels > decibels.max() - SILENCE_DB)[-1] + 1) * frame
    voice = pcm[:end].copy()
    voice[end - frame :] *= np.linspace(1, 0, frame, dtype=np.float32)
    return np.concatenate([voice, np.zeros(int(PAUSE_S * sample_rate), np.float32)])


class PocketTemplate:
    """Pocket TTS prompt template."""

    pieces: type[TextPieces] = TextPieces

    def __init__(self, family: Family, vocabulary: PocketVocabulary, tokenizer: PlainTokenizer, codec: Codec):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._pieces = self.pieces(tokenizer, lambda text: self.finished(self.rewritten(text)))
        self._encoder = CachedEncoder(codec.encode)
        self._sample_rate = codec.spec.sample_rate

    def rewritten(self, text: str) -> str:
        return rewritten(text, self._vocabulary.text)

    def finished(self, text: str) -> str:
        """Return rewritten `text` with the first letter, the end and the padding of the texts in training."""
        return finished(text, self._vocabulary.text)

    def num_tail_rows(self, text: str) -> int:
        """Return the number of frames from the detected end of speech, larger for texts of few words."""
        if self._vocabulary.tail_rows is not None:
            return self._vocabulary.tail_rows
        return SHORT_TAIL_ROWS if len(text.split()) <= FEW_WORDS else TAIL_ROWS

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for a text, in the voice of the recording in `pieces`, or else the one called `voice`."""
        *recordings, piece = pieces
        assert piece.text is not None, task.name
        check_text(piece.text, piece.path, self._family.max_text_chars)
        if not any(map(str.isalnum, self.rewritten(piece.text))):
            raise InvalidRequest(piece.path, "text with a letter or a digit", shown(piece.text))
        parts = self._pieces.cut(piece.text)
        if not parts:
            raise InvalidRequest(piece.path, "text that the model has tokens for", shown(piece.text))
        if manner.piece is None and len(parts) > 1:
            got = f"a text of {len(parts)} pieces"
            raise InvalidRequest(piece.path, f"at most {MAX_PIECE_TOKENS} tokens, or options.piece", got)
        number = manner.piece or 0
        if number >= len(parts):
            raise InvalidRequest("options.piece", f"an integer in [0, {len(parts) - 1}]", number)
        texts = [self.rewritten(piece) for piece in parts]
        encoded = [self._tokenizer.encode(self.finished(text)) for text in texts]
        longest = max(map(len, encoded))
        if longest > MAX_TOKENS:  # checked for all pieces, so that no piece is refused after others have been spoken
            raise InvalidRequest(piece.path, f"at most {MAX_TOKENS} tokens without a comma or full stop", longest)
        text = texts[number]
        ids = encoded[number]
        layout = self._family.layout
        head = self._recorded(recordings[0]) if recordings else stream0_rows(layout, self._named(voice))
        seconds = len(ids) / TOKENS_PER_S + SPARE_S
        return PromptRows(
            np.concatenate([head, stream0_rows(layout, [*ids, self._vocabulary.bos])]),
            max_rows=min(MAX_FRAMES, math.ceil(seconds * FRAME_RATE)),
            tail_rows=self.num_tail_rows(text),
            num_pieces=len(parts),
            spoken=parts[number],
        )

    def _named(self, voice: str | None) -> list[int]:
        if voice is None:
            raise InvalidRequest("messages", "a system turn with audio (this model has no named voices)", "none")
        return list(self._vocabulary.voice(voice))

    def _recorded(self, piece: Piece) -> np.ndarray:
        """Return the rows [n, 1 + D] for the voice in a recording."""
        words = (self._encoded(piece) if piece.codes is None else piece.codes).T
        if len(words) < MIN_VOICE_S * FRAME_RATE:
            raise InvalidRequest(piece.path, f"at least {MIN_VOICE_S} s", f"{len(words) / FRAME_RATE:g} s")
        begin = [self._vocabulary.voice_begin] if self._vocabulary.has_voice_begin else []
        rows = stream0_rows(self._family.layout, [*begin, *[self._vocabulary.recorded] * len(words)])
        rows[len(begin) :, 1:] = words
        return rows

    def _encoded(self, piece: Piece) -> np.ndarray:
        """Encode a recording to latents as words, int32 [D, T]."""
        assert piece.pcm is not None, "a recording has samples, codes or latents"
        if len(piece.pcm) < MIN_VOICE_S * self._sample_rate:
            raise InvalidRequest(piece.path, f"at least {MIN_VOICE_S} s", f"{len(piece.pcm) / self._sample_rate:.4f} s")
        return self._encoder.encode(ended_on_pause(piece.pcm, self._sample_rate))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = plain_tokenizer(checkpoint)
    if len(tokenizer.tokens) >= vocabulary.num_text_ids:
        raise CheckpointError(
            f"{checkpoint}: expected at most {vocabulary.num_text_ids - 1} tokens, got {len(tokenizer.tokens)}"
        )
    return PocketTemplate(family, vocabulary, tokenizer, codec)
