"""Slow reference of the sampling of codes, and of rows with text instead of frames, for `stretto.testing`."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing import ReferenceRule
from stretto_cosyvoice3.family import CodeRules, GroupedText

TEXT_LENGTHS = (9, 12, 3, 16, 100, 5, 7, 0, 10)


def random_text(text: GroupedText, index: int) -> tuple[int, ...]:
    """Return codes of a recording, then ids of a text, for test prompt `index`."""
    random = np.random.default_rng(index)
    codes = text.codes
    num_codes = (0, 20, 15, 7)[index % 4]
    recorded = random.integers(codes.start, codes.stop, num_codes).tolist()
    return (*recorded, *random.integers(16, 47, TEXT_LENGTHS[index % len(TEXT_LENGTHS)]).tolist())


def given_runs(rules: CodeRules, track: list[int]) -> list[list[int]]:
    """Return the runs of given ids in a reply. A group of sampled rows follows each run but the last."""
    groups = rules.groups
    codes = [token for token in track if token in rules.codes]
    *words, end = track[len(codes) :]
    runs = list[list[int]]()
    run = list[int]()
    while len(words) >= groups.num_words:
        run += words[: groups.num_words] + codes[: groups.num_frames]
        is_full = len(codes) >= groups.num_frames
        words = words[groups.num_words :]
        codes = codes[groups.num_frames :]
        if not is_full:
            runs.append(run)
            run = []
    return [*runs, [*run, *words, end, *codes]]


class Codes(ReferenceRule):
    """Given rows and codes of a reply."""

    def __init__(self, rules: CodeRules, prompt: Prompt):
        super().__init__(rules, prompt)
        track = list(prompt.track)
        self.groups = rules.groups
        self.runs = given_runs(rules, track)
        self.left = self.runs.pop(0)  # ids of the current run
        recorded = [token for token in track if token in rules.codes]
        self.num_sampled = len(recorded) % self.groups.num_frames

    def given_row(self, sample: Callable[[], int]) -> tuple[int, int] | None:
        """Return the ids of stream 0 and the text stream in the next row if it is a given row."""
        if self.left:
            return self.groups.given_id, self.left.pop(0)
        is_last = not self.runs
        if is_last or (self.num_sampled < self.groups.num_frames and sample() != self.groups.fill_id):
            self.num_sampled += 1
            return None
        self.left = self.runs.pop(0)
        self.num_sampled = 0
        return self.groups.fill_id, self.left.pop(0)

    def permitted(self, codes: list[int], ends: list[int]) -> list[int]:
        """Return the ids that may be sampled: the reply cannot end before its text."""
        is_over = not self.runs and not self.left
        return codes + ends if is_over else [*codes, self.groups.fill_id]

    def is_guarded(self, token: int, stream: int, is_code: bool) -> bool:
        return is_code or token == self.groups.fill_id

    def counted(self, ids: Sequence[int], window: int) -> list[int]:
        """Return the ids among which repeats are counted: only the first row of a run of given rows counts."""
        return [token for token in ids if token != self.groups.given_id][-window:]

    def kept(
        self, logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling, penalized: Sequence[float]
    ) -> dict[int, float]:
        """Return the ids that top-p, over all ids, and top-k keep, with their logits."""
        kept = list(ranked)
        if limits.temperature > 0:
            weights = [math.exp((logits[token] - logits[ranked[0]]) / limits.temperature) for token in ranked]
            before = accumulate(weights, initial=0.0)  # mass of all more probable ids
            wanted = limits.top_p * math.fsum(weights)
            kept = [token for token, mass in zip(ranked, before, strict=False) if mass < wanted][: limits.top_k or None]
        return {token: logits[token] for token in kept}

    def redrawn_from(self, allowed: Sequence[int], repeated: int) -> list[int]:
        return [token for token in allowed if token != repeated]
