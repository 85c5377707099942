"""Words that the model requests: the rules of this family's replies, and the format of its texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stretto.errors import InvalidRequest, shown
from stretto.family.base import DrawRules
from stretto.family.input_tracks import TextTrack
from stretto.family.plugin import lazy

HERE = __package__
NUM_FIELDS = 4  # numbers of a word in a slot's table (`track.TokenizedWord`)


def pack_word(tokens: Sequence[int], padding: int) -> list[int]:
    """Return a word (or a break, if there are no tokens) as ids for `Prompt.track`."""
    return [1 + len(tokens), padding, *tokens]


def unpack_words(ids: Sequence[int] | NDArray[np.int32]) -> Iterator[tuple[list[int], int]]:
    """Yield the tokens and the padding of each word in `ids`, from `pack_word`; raise InvalidRequest for other ids."""
    at = 0
    while at < len(ids):
        stop = at + 1 + int(ids[at])
        if ids[at] < 1 or stop > len(ids):
            raise InvalidRequest("track", "words: their number of tokens plus 1, their padding and their tokens", at)
        yield [int(token) for token in ids[at + 2 : stop]], int(ids[at + 1])
        at = stop


@dataclass(frozen=True)
class WordScript(DrawRules):
    """Streamed text that the model requests word by word: it samples `new_id` on stream 0 when a word may begin.

    drawn            -    -    new  -    -    -    new        - is any other id
    stream 0         pad  pad  new  w0   w0'  pad  new  w1    without `ahead`
    stream 0         pad  pad  w0   w0'  pad  pad  w1   w1'   with `ahead`
    second stream    -    -    new  w2   w2'  -    new  w3    with `ahead` = 2, else empty

    The model only decides when a word begins. Stream 0 carries the tokens of the word and pads. Each word has a
    padding: a number of rows in which no other word may begin. A break is a word without tokens. The second stream
    shows the word that is `ahead` words further. A row that asks for a word when none is left ends the speech, and the
    reply ends `tail_rows` rows later.

    A word may contain `new_id`, if that is also the tokenizer's id of unknown characters. With `ahead`, this id is then
    on the second stream, as where a word begins, and stream 0 has the next token. The first token of a word is
    always on stream 0.

    Attributes:
        new_id: Id of stream 0 with which the model asks for a word.
        pad_id: Id of stream 0 in rows without a token.
        wish_id: Id of stream 0 in a row where the model asked for a word, and got a break or nothing. It is the last id
            of `StreamLayout.audio[0]`, has the embedding of `pad_id`, and is never sampled.
        ahead: Number of words by which the second stream is ahead; 0 if it is empty.
        second_base: Id of token 0 on the second stream.
        max_padding: Maximum number of rows from the beginning of a word to that of the next, beyond its own.
        initial_padding: Number of rows before the first word.
        tail_rows: Number of rows from the row that ends the speech to the end of the reply.
        num_sampled: Number of ids of stream 0, from the first on, that the model samples; 0 if it samples all of them.
    """

    new_id: int = 0
    pad_id: int = 3
    wish_id: int = 4
    ahead: int = 0
    second_base: int = 0
    max_padding: int = 8
    initial_padding: int = 2
    tail_rows: int = 4
    num_sampled: int = 0

    columns: ClassVar[tuple[str, ...]] = (
        "remaining",
        "forced",
        "main_at",
        "main_end",
        "second_at",
        "second_end",
        "taken",
        "end",
    )
    ends_audio: ClassVar[bool] = True
    word_column: ClassVar = columns.index("taken")
    row_draw: ClassVar = lazy(f"{HERE}.draw:WordDraw")
    step_program: ClassVar = lazy(f"{HERE}.draw:WordProgram")
    reference: ClassVar = lazy(f"{HERE}.reference:Words")

    @property
    def state(self) -> Mapping[str, int]:
        """The columns before a reply: the model waits for `initial_padding` rows."""
        state = dict.fromkeys(self.columns, 0)
        return state | {"remaining": self.initial_padding, "forced": self.initial_padding, "end": -1}

    def sampled_ids(self, ids: Sequence[int]) -> list[int]:
        """Return the ids in `ids` that the model may sample."""
        return [token for token in ids if token != self.wish_id][: self.num_sampled or None]

    def num_text_entries(self, max_rows: int) -> int:
        """Return the size of a slot's table: tokens, then the fields of each word."""
        return (1 + NUM_FIELDS) * max_rows


@dataclass(frozen=True, kw_only=True)
class ScriptedText(TextTrack):
    """Text whose words the model requests."""

    script: WordScript

    open: ClassVar = lazy(f"{HERE}.track:WordTrack.begin")
    random_text: ClassVar = lazy(f"{HERE}.reference:random_words")

    def check_text(self, ids: Sequence[int], tokens: range) -> None:
        """Raise InvalidRequest if packed words are invalid."""
        last = tokens.stop - 1  # `wish_id` is not a token
        for word, padding in unpack_words(ids):
            if not all(0 <= token < last for token in word) or padding < 0:
                raise InvalidRequest("track", f"words of tokens in [0, {last})", shown([*word, padding]))
