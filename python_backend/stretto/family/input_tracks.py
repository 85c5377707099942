"""Input-only streams of a family whose ids are known before their rows are sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol


class InputTrack(Protocol):
    """Input-only streams whose ids are known before their rows are sampled."""

    @property
    def open(self) -> Callable[..., Any] | None:
        """Function of (`SegmentRules`, first row, ids, is open) that returns the `engine.tracks.Track` of a reply.

        It is a reference (`plugin.lazy`). None for the common tracks, whose ids are read row by row.
        """
        ...

    @property
    def streams(self) -> range:
        """Indices of the streams, which are consecutive."""
        ...


class TextRows(NamedTuple):
    """Audio rows that contain text instead of a frame.

    Codes of stream 0 at the start of such a text belong to a recording. The text stream of such a row has -1 - i, which
    refers to entry i of the slot's table (`DrawRules.num_text_entries`), because this entry may arrive after the row
    was sampled.

    Attributes:
        ids: Ids of stream 0 in these rows. They do not end the audio.
        column: Index, among the family's state columns (`DrawRules.state`), of the number of these rows so far.
    """

    ids: tuple[int, ...]
    column: int


@dataclass(frozen=True)
class TextTrack:
    """Input-only stream for streamed text: row i of the reply has frame i, and id i of the text on this stream.

    A family whose rows read the text in another way has a subclass with an `open`.

    Attributes:
        pad_id: Id of the stream in rows after the end of the text. If each row reads an id, this must not be the
            layout's `pad_id` if that adds nothing to an embedding (`StreamLayout.pad_is_silent`).
        is_usual: True if by default the text is read during the reply; False if it is part of the prompt.
        num_prompt_ids: Number of ids of a streamed text that precede the first frame, if later rows read an id each.
            The prompt of an open text ends with as many rows; a text with fewer ids has only the last of them.
        random_text: Function of (track, number) that returns the ids of a text for a test prompt, without its end id.
            None for ordinary ids.
    """

    stream: int
    pad_id: int
    end_id: int
    is_usual: bool = False

    num_prompt_ids: ClassVar[int] = 1
    open: ClassVar[Callable[..., Any] | None] = None
    random_text: ClassVar[Callable[..., Any] | None] = None

    @property
    def streams(self) -> range:
        return range(self.stream, self.stream + 1)

    @property
    def text_rows(self) -> TextRows | None:
        """Rows with text instead of a frame; None if all audio rows have frames."""
        return None

    def max_text_ids(self, num_rows: int) -> int:
        """Return how many text ids, without the end id, `num_rows` rows before a reply's last row can read at most.

        Each row reads one id, and the last one the end id, unless there are rows with text.
        """
        return max(num_rows - 1, 0)

    def check_text(self, ids: Sequence[int], tokens: range) -> None:
        """Raise InvalidRequest if an id of a text is invalid.

        Args:
            ids: Ids, without the end id.
            tokens: Ids of stream 0 in audio.
        """


@dataclass(frozen=True)
class CodeTrack:
    """Input-only streams of a recording's codes: row i of the reply carries frame i, and later rows carry pads.

    Such a reply (text or audio) has one row per frame of the recording and ends with it. The row after the last frame
    is the last one before `Family.end_of_reply`, which the model itself never samples. The engine needs to know the
    codes, so they are encoded before the reply (`Prompt.track`).
    """

    open: ClassVar[Callable[..., Any] | None] = None
    streams: range


@dataclass(frozen=True)
class PositionTrack:
    """Input-only stream of learned positions: row i of a reply carries the i-th of `ids`.

    The prompt template sets the positions of the prompt's rows, which the unconditional request of a CFG pair reads as
    well.
    """

    stream: int
    ids: range

    open: ClassVar[Callable[..., Any] | None] = None

    @property
    def streams(self) -> range:
        return range(self.stream, self.stream + 1)
