"""Slow reference of streamed text: text in separate rows (`TextGroups`), and words that the model asks for."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from stretto.families.base import Family, WordScript
from stretto.records.prompt import unpack_words

Row = list[int]


def given_runs(family: Family, track: list[int]) -> list[list[int]]:
    """Return the runs of given ids in a reply; a group of sampled rows follows each run but the last."""
    groups: Any = family.text_groups
    codes = [token for token in track if token in family.layout.audio[0]]
    *words, end = track[len(codes) :]
    runs, run = list[list[int]](), list[int]()
    while len(words) >= groups.num_words:
        run += words[: groups.num_words] + codes[: groups.num_frames]
        is_full = len(codes) >= groups.num_frames
        words, codes = words[groups.num_words :], codes[groups.num_frames :]
        if not is_full:
            runs.append(run)
            run = []
    return [*runs, [*run, *words, end, *codes]]


class Given:
    """Given rows of a reply (`TextGroups`)."""

    def __init__(self, family: Family, track: list[int]):
        groups: Any = family.text_groups
        self.groups, self.runs = groups, given_runs(family, track)
        self.left = self.runs.pop(0)  # ids of the current run
        recorded = [token for token in track if token in family.layout.audio[0]]
        self.num_sampled = len(recorded) % groups.num_frames

    @property
    def is_over(self) -> bool:
        return not self.runs and not self.left

    @property
    def may_sample(self) -> bool:
        """True if the next row is sampled, unless the sampled id is the one that ends a group."""
        return bool(self.runs) and not self.left and self.num_sampled < self.groups.num_frames

    def next_ids(self, sampled: int) -> tuple[int, int] | None:
        """Return the ids of the next row if it is given, otherwise None; `sampled` is the id sampled for the row."""
        if self.left:
            return self.groups.given_id, self.left.pop(0)
        if self.is_over or (self.num_sampled < self.groups.num_frames and sampled != self.groups.fill_id):
            self.num_sampled += 1
            return None
        self.left, self.num_sampled = self.runs.pop(0), 0
        return self.groups.fill_id, self.left.pop(0)


class Words:
    """Token queues for the words that the model asks for in a reply (`WordScript`)."""

    def __init__(self, script: WordScript, track: Sequence[int]):
        self.script, self.words = script, deque(unpack_words(track[:-1]))
        self.main, self.second = deque[int](), deque[int]()
        self.num_left = self.num_forced = script.initial_padding
        self.end: int | None = None

    def next_ids(self, sampled: int, position: int) -> tuple[int, int | None]:
        """Return a row's id on stream 0, and its token on the second stream if any; `sampled` is the sampled id."""
        script, asks = self.script, sampled == self.script.new_id or self.num_left == 0
        if self.main or self.num_forced > 0:
            asks = False
        if asks and self.words:
            tokens, self.num_forced = self.words.popleft()
            if tokens:
                self.num_left = script.max_padding
                self.main.extend(tokens)
                if not script.ahead:
                    return script.new_id, None
                spoken = [tokens for tokens, _ in self.words if tokens]
                if len(spoken) >= script.ahead:
                    self.second.extend(spoken[script.ahead - 1])
                return self.main.popleft(), script.new_id
        elif asks and self.end is None:
            self.end = position
            if script.ahead:
                return script.wish_id, script.new_id
        self.num_left, self.num_forced = max(0, self.num_left - 1), max(0, self.num_forced - 1)
        if not self.main:
            token = script.wish_id if asks else script.pad_id
        elif (token := self.main.popleft()) == script.new_id and script.ahead:
            return self.main.popleft() if self.main else script.pad_id, script.new_id
        return token, self.second.popleft() if self.second else None

    def lay(self, row: Row, position: int, family: Family) -> None:
        """Replace a row's sampled id with the ids of the words; end the audio a fixed number of rows after them."""
        if row[0] == family.end_of_audio:
            return
        row[0], second = self.next_ids(row[0], position)
        if second is not None:
            row[family.track_streams.start] = self.script.second_base + second
        if self.end is not None and position - self.end >= self.script.tail_rows:
            row[0] = family.end_of_audio
