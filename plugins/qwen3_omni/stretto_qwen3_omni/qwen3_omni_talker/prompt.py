r"""Prompts of Qwen3-Omni's talker, written from the thinker's prompt and reply (by `SpokenLLM`, or for `SpeechLLM`).

    text    im_start user \n  What is  …    ? im_end \n │ im_start assistant \n  pad …       bos Hello │ ,  eos pad …
    codec                              │ │             │                        nothink … pad bos   │ f0 f1  f2  …
    states                             s0 s1

The talker reads only the user turns of the conversation: ids for text, and one projected hidden state of the thinker
per row of audio or an image. With each frame, it reads a token of the thinker's reply: the first token in the last
prompt row, the others as they arrive, then the end token (`Family.text_track`). The layout follows `generate` of
Qwen3OmniMoeForConditionalGeneration in transformers.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.families.qwen3_tts.prompt import RowWriter
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import stream0_rows
from stretto.records.prompt import InputAudio, InputImage, Prompt
from stretto.records.sampling import SamplingConfig
from stretto_qwen3_omni.qwen3_omni_talker.family import NAME, TalkerVocabulary, qwen3_omni_talker


class TalkerPrompts:
    """Prompt writer for one talker checkpoint."""

    def __init__(self, vocabulary: TalkerVocabulary):
        self._vocabulary = vocabulary
        self.family = qwen3_omni_talker(vocabulary)
        self._writer = RowWriter(self.family, vocabulary)

    @classmethod
    def at(cls, checkpoint: Path) -> "TalkerPrompts":
        """Return the writer for a checkpoint folder; raise CheckpointError if it belongs to another family."""
        config = config_at(checkpoint)
        if config.get("speech_family") != NAME:
            raise CheckpointError(f"{checkpoint}: expected a checkpoint of {NAME}, got {config.get('speech_family')!r}")
        return cls(TalkerVocabulary.from_record(config[VOCABULARY]))

    def check_writer(self, num_ids: int, voices: Sequence[str]) -> None:
        """Raise CheckpointError unless the talker has the thinker's `num_ids` text ids and all its voices."""
        if self._vocabulary.num_text_ids != num_ids:
            expected = f"num_text_ids {num_ids}, as many ids as the thinker has"
            raise CheckpointError(f"talker: {VOCABULARY}: expected {expected}, got {self._vocabulary.num_text_ids}")
        missing = [voice for voice in voices if voice not in self._vocabulary.speakers]
        if missing:
            expected = f"the thinker's voice {missing[0]!r} in speakers"
            got = ", ".join(self._vocabulary.speakers)
            raise CheckpointError(f"talker: {VOCABULARY}: expected {expected}, got {got}")

    def write(
        self,
        conversation: Sequence[int] | np.ndarray,
        words: Sequence[int],
        voice: str,
        states: np.ndarray | None = None,
        sampling: SamplingConfig | None = None,
        is_open: bool = False,
        grids: Sequence[tuple[int, int]] = (),
    ) -> Prompt:
        """Return the prompt that speaks `words`; raise InvalidRequest with the name of an invalid argument.

        Args:
            conversation: Ids of the thinker's prompt.
            words: Ids of the thinker's reply, or of its beginning if `is_open`.
            states: Hidden states, float32 [n, W], of the thinker layer given by `accept_hidden_layer` in config.json,
                for the ids of audio and images in user turns, in order; None if there are none.
            sampling: Sampling options; None for the defaults.
            is_open: True if `SpeechLLM.write` will add further words and the end id; if False, the end id is added.
            grids: Height and width of each image in user turns, in rows of the prompt.
        """
        text = self._vocabulary.text
        users = self._user_turns(self._checked_ids("conversation", conversation))
        self.check_words(words)
        if voice not in self._vocabulary.speakers:
            raise InvalidRequest("voice", f"one of {', '.join(self._vocabulary.speakers)}", repr(voice))
        head = np.concatenate([stream0_rows(self.family.layout, users), self._writer.head([], voice, None)])
        written = self._writer.prompt(head, words, is_streaming=True)
        assert written.track[-1] == text.eos
        audios, images = self._inputs(users, states, grids)
        return Prompt(
            self.family.tasks[0].name,
            written.rows,
            sampling or self.family.tasks[0].sampling,
            audios=audios,
            images=images,
            track=written.track[:-1] if is_open else written.track,
            is_open=is_open,
        )

    def spoken(self, words: Sequence[int]) -> list[int]:
        """Return the ids in `words` that may be spoken, without those that begin, end or pad a text."""
        text = self._vocabulary.text
        marks = {text.pad, text.bos, text.eos}
        return [word for word in words if word not in marks]

    def check_words(self, words: Sequence[int]) -> None:
        """Raise InvalidRequest if `words` is empty, or contains an id that begins, ends or pads a text."""
        self._checked_ids("words", words)
        if not len(words):
            raise InvalidRequest("words", "at least the first text id of a reply", "none")
        marks = {self._vocabulary.text.pad, self._vocabulary.text.bos, self._vocabulary.text.eos}.intersection(words)
        if marks:
            raise InvalidRequest("words", "text ids without bos, eos and pad ids", sorted(marks))

    def _checked_ids(self, field: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return ids as an array [n]; raise InvalidRequest if one is not a text id of the thinker."""
        size = self._vocabulary.num_text_ids
        array = np.asarray(ids) if len(ids) else np.zeros(0, np.int32)
        is_good = array.ndim == 1 and array.dtype.kind in "iu"
        if not is_good or (array.size and not 0 <= array.min() <= array.max() < size):
            odd = [
                token_id for token_id in ids if not isinstance(token_id, int | np.integer) or not 0 <= token_id < size
            ]
            raise InvalidRequest(field, f"the thinker's text ids in [0, {size})", repr(odd[0] if odd else ids)[:60])
        return array

    def _user_turns(self, ids: np.ndarray) -> np.ndarray:
        """Return the ids of the user turns, each from its `im_start` up to the `im_start` of the next turn."""
        text = self._vocabulary.text
        starts = np.flatnonzero(ids == text.im_start)
        is_user = np.append(ids, -1)[starts + 1] == text.user
        lengths = np.diff(np.append(starts, len(ids)))
        turns: np.ndarray = ids[starts[0] :][np.repeat(is_user, lengths)] if len(starts) else ids[:0]
        if (turns == self._vocabulary.seen[1]).any():
            raise InvalidRequest("conversation", "only text, audio and images", "a turn with a video")
        return turns

    def _inputs(
        self, users: np.ndarray, states: np.ndarray | None, grids: Sequence[tuple[int, int]]
    ) -> tuple[tuple[InputAudio, ...], tuple[InputImage, ...]]:
        """Assign the hidden states to the rows of audio and images in the user turns."""
        heard = self._vocabulary.heard
        image = self._vocabulary.seen[0]
        rows = np.flatnonzero((users == heard) | (users == image))
        state_rows = np.zeros((0, 1), np.float32) if states is None else states
        if state_rows.ndim != 2 or len(state_rows) != len(rows) or state_rows.dtype != np.float32:
            expected = f"float32 [{len(rows)}, W], one for each id of input audio and images"
            raise InvalidRequest("states", expected, f"{state_rows.dtype} {list(state_rows.shape)}")
        begins = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (np.diff(users[rows], prepend=-1) != 0))
        spans = [(int(rows[begin]), state_rows[begin:end]) for begin, end in pairwise([*begins.tolist(), len(rows)])]
        audios = tuple(
            InputAudio(first, len(span_states), span_states) for first, span_states in spans if users[first] == heard
        )
        seen = [(first, span_states) for first, span_states in spans if users[first] == image]
        sizes = [len(span_states) for _, span_states in seen]
        if sizes != [height * width for height, width in grids]:
            raise InvalidRequest("grids", f"heights and widths of images of {sizes} rows", shown(list(grids)))
        pairs = zip(seen, grids, strict=True)
        return audios, tuple(InputImage(first, *grid, span_states) for (first, span_states), grid in pairs)
