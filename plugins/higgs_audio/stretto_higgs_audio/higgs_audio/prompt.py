"""Higgs Audio v2 prompts: turns of text, each answered by rows of codes.

    [bos]<system>Generate audio following instruction.[scene]A quiet room.[/scene][eot]
    <user>Hi[eot]  <assistant>[audio]B … its speech … E[/audio][eot]  <user>Hello[eot]  <assistant>[audio]B ─►

The audio of a turn begins with a row of begin ids and ends with a row of end ids. Each stream is delayed:

    stream 0   B 0 1 2 E E E
    stream 1   B B 0 1 2 E E
    stream 2   B B B 0 1 2 E

A scene describes the place and the speaker. It is the text of a system turn, or `options.instruct`. A system turn with
audio defines the voice, and its text is the transcript; both become the first turns of the conversation. The layout
follows the chat template and the processor of `higgs_audio_v2` in transformers.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, check_codes, stream0_rows
from stretto.family.text import TextTokenizer, check_text
from stretto.streams.layout import StreamLayout
from stretto_higgs_audio.higgs_audio.family import (
    BEGIN,
    BEGIN_OF_AUDIO,
    END_HEADER,
    END_OF_AUDIO,
    END_OF_TURN,
    SCENE_END,
    SCENE_START,
    START_HEADER,
)

SYSTEM = "Generate audio following instruction."


def audio_rows(layout: StreamLayout, codes: np.ndarray) -> np.ndarray:
    """Convert codes [K, T] to delayed rows, int32 [T + K + 1, S], with begin and end ids around each stream."""
    num_codebooks, num_frames = codes.shape
    begin, end = np.array(layout.extra).T
    rows = np.tile(end, (num_frames + num_codebooks + 1, 1))
    for k, delay in enumerate(layout.delays):
        rows[: delay + 1, k] = begin[k]
        rows[delay + 1 : delay + 1 + num_frames, k] = layout.audio[k].start + codes[k]
    return rows.astype(np.int32)


class HiggsAudioTemplate:
    """Higgs Audio prompt template."""

    def __init__(self, family: Family, tokenizer: TextTokenizer, codec: Codec):
        self._family = family
        self._tokenizer = tokenizer
        self._encoder = CachedEncoder(codec.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of all turns, up to the row that precedes the speech to be generated."""
        turns = [list(turn) for _, turn in groupby(pieces, lambda piece: piece.path.rpartition(".")[0] or piece.path)]
        system = turns.pop(0) if turns[0][0].role == "system" else []
        has_voice = any(piece.text is None for piece in system)
        scene = manner.instruct
        path = "options.instruct"
        if system and not has_voice:
            if scene:
                raise InvalidRequest(path, "no value, because a system turn describes the scene", "both")
            scene = system[0].text or ""
            path = system[0].path
        parts = [self._opening(scene, path)]
        parts += self._voice(system) if has_voice else []
        parts += [self._turn(turn) for turn in turns]
        begins = np.array([[first for first, _ in self._family.layout.extra]], np.int32)
        return PromptRows(np.concatenate([*parts, self._rows(*_header("assistant"), "\n\n", [BEGIN_OF_AUDIO]), begins]))

    def _opening(self, scene: str, path: str) -> np.ndarray:
        """Return the rows of the system turn: the instruction, and the scene if there is one."""
        parts: list[str | list[str]] = [f"\n\n{SYSTEM}"]
        if scene:
            parts += ["\n\n", [SCENE_START], f"\n{self._text(scene, path)}\n", [SCENE_END]]
        return self._rows([BEGIN], *_header("system"), *parts, [END_OF_TURN])

    def _voice(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Return the rows of a cloned voice as turns: the words and the audio of its recording."""
        words = [piece for piece in pieces if piece.text is not None]
        if not words:
            raise InvalidRequest(pieces[0].path, "audio together with its transcript", "audio only")
        return [self._words(words[0]), *(self._audio(piece) for piece in pieces if piece.text is None)]

    def _turn(self, turn: Sequence[Piece]) -> np.ndarray:
        """Return the rows of a turn, which is text from the user or audio from the assistant."""
        for piece in turn:
            if (piece.role == "user") != (piece.text is not None):
                user = "only text in user turns"
                assistant = "only audio in assistant turns"
                raise InvalidRequest(piece.path, f"{user} and {assistant}", "audio" if piece.text is None else "text")
        return self._words(turn[0]) if turn[0].text is not None else self._audio(turn[0])

    def _words(self, piece: Piece) -> np.ndarray:
        assert piece.text is not None, piece.path
        text = self._text(piece.text, piece.path)
        return self._rows(*_header("user"), f"\n\n{text}", [END_OF_TURN])

    def _audio(self, piece: Piece) -> np.ndarray:
        if piece.codes is not None:
            check_codes(piece.codes, self._family, piece.path)
            codes = piece.codes
        else:
            assert piece.pcm is not None, piece.path
            codes = self._encoder.encode(piece.pcm)
        before = self._rows(*_header("assistant"), "\n\n", [BEGIN_OF_AUDIO])
        rows = audio_rows(self._family.layout, codes)
        return np.concatenate([before, rows, self._rows([END_OF_AUDIO], [END_OF_TURN])])

    def _text(self, text: str, path: str) -> str:
        """Return `text` stripped of surrounding space; raise InvalidRequest if the result is empty or too long."""
        check_text(text, path, self._family.max_text_chars)
        if not text.strip():
            raise InvalidRequest(path, "text with at least one non-space character", repr(text[:20]))
        return text.strip()

    def _rows(self, *parts: str | list[str]) -> np.ndarray:
        """Return rows [n, S] of text (strings) and markers (lists of one name).

        A marker without a token in the tokenizer is written as text.
        """
        ids: list[int] = []
        text = ""
        for text_or_marker in parts:
            segment = text_or_marker if isinstance(text_or_marker, str) else text_or_marker[0]
            if isinstance(text_or_marker, str) or segment not in self._family.markers:
                text += segment
                continue
            ids += [*self._tokenizer.encode(text), self._family.markers[segment]]
            text = ""
        return stream0_rows(self._family.layout, [*ids, *self._tokenizer.encode(text)])


def _header(role: str) -> tuple[list[str], str, list[str]]:
    return [START_HEADER], role, [END_HEADER]


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    return HiggsAudioTemplate(family, TextTokenizer.at(checkpoint), codec)
