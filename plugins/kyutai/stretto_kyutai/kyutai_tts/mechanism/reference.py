"""Slow reference of the words that the model requests, and random words, for `stretto.testing`."""

from collections import deque

import numpy as np

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing import ReferenceRule
from stretto_kyutai.kyutai_tts.mechanism.script import ScriptedText, WordScript, pack_word, unpack_words

WORD_COUNTS = (4, 7, 1, 0, 12)


def random_words(text: ScriptedText, index: int) -> list[int]:
    """Return packed words for test prompt `index`, including breaks."""
    random = np.random.default_rng(index)
    ids = list[int]()
    for _ in range(WORD_COUNTS[index % len(WORD_COUNTS)]):
        ids += pack_word(random.integers(16, 47, random.integers(0, 4)).tolist(), int(random.integers(0, 5)))
    return ids


class Words(ReferenceRule):
    """Token queues for the words that the model asks for in a reply (`WordScript`)."""

    def __init__(self, script: WordScript, prompt: Prompt):
        super().__init__(script, prompt)
        self.script = script
        self.words = deque(unpack_words(prompt.track[:-1]))
        self.main = deque[int]()
        self.second = deque[int]()
        self.num_left = self.num_forced = script.initial_padding
        self.end: int | None = None

    def next_ids(self, sampled: int, position: int) -> tuple[int, int | None]:
        """Return a row's id on stream 0, and its token on the second stream if any, given the sampled id."""
        script = self.script
        asks = sampled == self.script.new_id or self.num_left == 0
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
        self.num_left = max(0, self.num_left - 1)
        self.num_forced = max(0, self.num_forced - 1)
        if not self.main:
            token = script.wish_id if asks else script.pad_id
        elif (token := self.main.popleft()) == script.new_id and script.ahead:
            return self.main.popleft() if self.main else script.pad_id, script.new_id
        return token, self.second.popleft() if self.second else None

    def replace_first(self, row: list[int], position: int, family: Family) -> None:
        """Replace a row's sampled id with ids of the words, and end the audio `tail_rows` rows after these."""
        if row[0] == family.end_of_audio:
            return
        row[0], second = self.next_ids(row[0], position)
        if second is not None:
            row[family.track_streams.start] = self.script.second_base + second
        if self.end is not None and position - self.end >= self.script.tail_rows:
            row[0] = family.end_of_audio
