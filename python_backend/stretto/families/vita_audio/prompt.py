"""Prompts of VITA-Audio: ChatML, without the system turn that Qwen 2.5 has by default.

    <|im_start|>role \\n content <|im_end|> \\n  …  <|im_start|>assistant \\n

    tts        user       Convert the text to speech.\\n text
    asr        user       Convert the speech to text.\\n audio
    dialogue   user       text \\n audio, or text alone
    audio      <|begin_of_audio|> codes <|end_of_audio|>
    heard      <|begin_of_audio|> <|context_of_audio|> … <|end_of_audio|>, in VITA-Audio-Plus

What an assistant said in words and codes takes turns as in training: `interleave`. The role, the line's end and the
content are tokenised apart from each other, as in training (`vita_audio/data/dataset_qwen2.py` of
https://github.com/VITA-MLLM/VITA-Audio): the content of a spoken turn begins with a line's end of its own. What Plus
hears takes the place of one `<|context_of_audio|>` for each row of it (`add_audio_input_contiguous` there); what it
said is codes, as with the others.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from stretto.codec.base import Codec
from stretto.codec.glm4_voice.tokenizer import SpeechTokenizer, load_tokenizer
from stretto.errors import InvalidRequest
from stretto.families.audio_format import KEY, NUM_QUERIES
from stretto.families.base import Family, Task
from stretto.families.encoder_cache import CachedEncoder
from stretto.families.registry import VOCABULARY, config_at
from stretto.families.tokenizer import TextTokenizer
from stretto.families.vita_audio.family import HEARD, VitaVocabulary
from stretto.families.vita_audio.features import stacked_log_mel
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.manner import PLAIN, Manner
from stretto.preprocessing.prompt import PromptRows, Template
from stretto.preprocessing.rows import check_codes, stream0_rows
from stretto.preprocessing.subwords import Subwords
from stretto.records.prompt import HeardAudio

SYSTEM_TEXT = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
INSTRUCTIONS = {"tts": "Convert the text to speech.\n", "asr": "Convert the speech to text."}
VOICE = "Your Voice: "


class VitaTemplate:
    """Writes the prompts of a checkpoint. ratio: as that of `VitaVocabulary`. tokenizer: of audio, if there is one.
    audio: `audio_config` of its config.json, where it hears through an encoder instead."""

    def __init__(
        self,
        family: Family,
        subwords: Subwords,
        ratio: Sequence[int],
        tokenizer: SpeechTokenizer | None = None,
        audio: Mapping[str, Any] | None = None,
    ):
        self._family, self._subwords, self._ratio, self._audio_config = family, subwords, ratio, audio
        self._heard = None if tokenizer is None else CachedEncoder(tokenizer.encode)
        self._begin, self._end = (family.markers[name] for name in ("begin_of_audio", "end_of_audio"))

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """The turns so far and the head of the reply; a dialogue without a system turn gets the authors'."""
        ids, heard = list[int](), list[np.ndarray]()
        if task.name == "dialogue" and pieces[0].role != "system":
            ids += self._turn("system", self._text(SYSTEM_TEXT, ""))
        for role, turn in groupby(pieces, lambda piece: piece.role):
            ids += self._turn(role, self._content(task, role, list(turn), heard))
        ids += self._head("assistant")
        return PromptRows(stream0_rows(self._family.layout, ids), audios=self._placed(ids, heard))

    def _head(self, role: str) -> list[int]:
        return [self._family.markers["im_start"], *self._text(role, ""), *self._text("\n", "")]

    def _turn(self, role: str, content: list[int]) -> list[int]:
        return [*self._head(role), *content, self._family.markers["im_end"], *self._text("\n", "")]

    def _content(self, task: Task, role: str, turn: list[Piece], heard: list[np.ndarray]) -> list[int]:
        """What one speaker says; the features of what is heard through an encoder go to the end of `heard`."""
        words = [piece for piece in turn if piece.text is not None]
        audio = [token for piece in turn if piece.text is None for token in self._audio(piece, heard)]
        for piece in words:
            self._text(piece.text or "", piece.path)  # its own limits are told by its own name
        text = "\n".join(piece.text or "" for piece in words)
        if role == "system":
            return [*self._text(VOICE, ""), *audio, *self._text("\n", "")] if audio else self._text(text, "system")
        if role == "assistant":
            return interleave(self._text(text, "assistant") if text else [], audio[1:-1], self._ratio, self._markers)
        instruction = INSTRUCTIONS.get(task.name, "")
        said = f"{instruction}{text}" + "\n" * bool(audio)
        return [*self._text(said, turn[0].path), *audio]

    @property
    def _markers(self) -> tuple[int, int]:
        return self._begin, self._end

    def _text(self, text: str, path: str) -> list[int]:
        return self._subwords.ids(text, path)

    def _audio(self, piece: Piece, heard: list[np.ndarray]) -> list[int]:
        if self._audio_config is not None and piece.role != "assistant":
            heard.append(self._features(piece, self._audio_config))
            rows = [self._family.markers[HEARD]] * (NUM_QUERIES + len(heard[-1]))
            return [self._begin, *rows, self._end]
        first = self._family.layout.audio[0].start
        return [self._begin, *(self._codes(piece) + first).tolist(), self._end]

    def _features(self, piece: Piece, audio: Mapping[str, Any]) -> np.ndarray:
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "an audio input: VITA-Audio-Plus hears samples and speaks codes", "codes")
        return stacked_log_mel(piece.pcm, audio)

    def _placed(self, ids: list[int], heard: list[np.ndarray]) -> tuple[HeardAudio, ...]:
        """The features in `heard` where `ids` have rows for them, in order."""
        context = self._family.markers.get(HEARD)
        firsts = [at for at, token in enumerate(ids) if token == context and ids[at - 1] == self._begin]
        return tuple(
            HeardAudio(first, NUM_QUERIES + len(features), features)
            for first, features in zip(firsts, heard, strict=True)
        )

    def _codes(self, piece: Piece) -> np.ndarray:
        """[T]: 12.5 a second."""
        if piece.codes is not None:
            check_codes(piece.codes, self._family, piece.path)
            return piece.codes[0]
        assert piece.pcm is not None, piece.path
        if self._heard is None:
            raise InvalidRequest(
                piece.path,
                "codes [1][T] in messages: the checkpoint has no ssl_tokenizer/ (docs/families.md, Requests)",
                "audio",
            )
        return self._heard.encode(piece.pcm)


def interleave(text: list[int], codes: list[int], ratio: Sequence[int], markers: tuple[int, int]) -> list[int]:
    """Text and codes in turns, each turn's codes between `markers`, which count among `ratio`'s.

    As many turns as both have; the last takes all that is left.
    """
    if not codes:
        return text
    if not text:
        return [markers[0], *codes, markers[1]]
    ids, word, code, turn = list[int](), 0, 0, 0
    while word < len(text) and code < len(codes):
        num_words, num_codes = (sizes[min(turn, len(sizes) - 1)] for sizes in (ratio[::2], ratio[1::2]))
        next_word, next_code = word + num_words, code + num_codes - 2
        if next_word >= len(text) or next_code >= len(codes):  # the last turn
            next_word, next_code = len(text), len(codes)
        ids += [*text[word:next_word], markers[0], *codes[code:next_code], markers[1]]
        word, code, turn = next_word, next_code, turn + 1
    return ids


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """The template over a checkpoint's tokenizers, or over that of text and the numbers of its encoder."""
    config, subwords = config_at(checkpoint), Subwords(TextTokenizer.at(checkpoint), family)
    ratio = VitaVocabulary.from_record(config[VOCABULARY]).ratio
    tokenizer = load_tokenizer(checkpoint, len(family.layout.audio[0]), device)
    return VitaTemplate(family, subwords, ratio, tokenizer, config.get(KEY))
