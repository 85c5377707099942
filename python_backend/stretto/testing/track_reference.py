"""Slow reference of streamed text in separate rows (`TextGroups`)."""

from typing import Any

from stretto.families.base import Family

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
