"""Words that the model asks for: arrays and GPU kernel follow queues of tokens, for random words and ids."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from plugins.kyutai.tests.kyutai_tts.word_replies import WordReplies
from plugins.kyutai.tests.small_families import KYUTAI_TTS, SMALL_TTS
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.worker.slots import DeviceArrays
from stretto.family.base import Family
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript, pack_word
from stretto_kyutai.kyutai_tts.mechanism.track import WordTrack
from tests.tiers import by_night

NUM_REPLIES, LENGTH, FIRST = 40, 160, 3
NUM_IN_KERNEL = 3  # replies that the interpreted kernel follows
Word = tuple[list[int], int]


def family(ahead: int) -> Family:
    """Return a family whose second stream shows the word that is `ahead` words further."""
    script = WordScript(
        wish_id=SMALL_TTS.wish_id, ahead=ahead, second_base=7, max_padding=5, initial_padding=2, tail_rows=4
    )
    return replace(KYUTAI_TTS, drawing=script, track=replace(KYUTAI_TTS.track, script=script))


def texts(seed: int) -> list[list[Word]]:
    """Return random texts: words of 1 to 4 tokens, some of them unknown (0), breaks, and texts without any word."""
    random = np.random.default_rng(seed)

    def word() -> Word:
        number = random.choice([0, 1, 1, 2, 4])
        tokens = np.where(random.random(number) < 0.2, 0, random.integers(5, 60, number))
        return tokens.tolist(), int(random.integers(0, 6))

    return [[word() for _ in range(n)] for n in random.integers(0, 14, NUM_REPLIES)]


class Queues:
    """The words of a text in queues, moved on by one row at a time."""

    def __init__(self, words: list[Word], ahead: int, max_padding: int, initial_padding: int):
        self.words, self.ahead, self.max_padding = deque(words), ahead, max_padding
        self.remaining = self.forced = initial_padding
        self.main, self.second = deque[int](), deque[int]()
        self.end: int | None = None

    def next(self, position: int, drawn: int) -> tuple[int, int]:
        """Return the token of stream 0 and that of the second stream, which is -1 for none; 0 begins a word, 3 pads."""
        asks = drawn == 0 or self.remaining <= 0
        if self.main or self.forced > 0:
            asks = False
        begins = ends = False
        if asks and self.words:
            tokens, self.forced = self.words.popleft()
            begins = bool(tokens)
            if begins:
                self.main.extend(tokens)
                self.remaining = self.max_padding
                spoken = [each for each, _ in self.words if each]
                if 0 < self.ahead <= len(spoken):
                    self.second.extend(spoken[self.ahead - 1])
        elif asks and self.end is None:
            ends, self.end = True, position
        if begins and not self.ahead:
            return 0, -1
        if not begins and not (ends and self.ahead):
            self.remaining, self.forced = max(0, self.remaining - 1), max(0, self.forced - 1)
        main = self.main.popleft() if self.main else 3
        if self.ahead and (begins or ends):
            return main, 0
        if self.ahead and main == 0:  # the authors' machine takes an unknown character for the beginning of a word
            return self.main.popleft() if self.main else 3, 0
        return main, self.second.popleft() if self.second else -1


def drawn_ids(seed: int) -> np.ndarray:
    """Return random ids of the model for each row and reply: word begins, pads and others."""
    random = np.random.default_rng(seed)
    return random.choice([0, 3, 3, 9, 44], (LENGTH - FIRST - 1, NUM_REPLIES)).astype(np.int64)


@pytest.mark.parametrize("ahead", [0, 2, *by_night(1, 3)])
@pytest.mark.parametrize("seed", [1, *by_night(2, 3, 4)])
def test_array_and_kernel_word_states_match_reference_queues(ahead: int, seed: int) -> None:
    rules = SegmentRules(family(ahead), LENGTH)
    script = rules.family.drawing
    words = texts(seed)
    assert isinstance(script, WordScript)
    packed = [[each for word in own for each in pack_word(*word)] + [0] for own in words]
    known = [track for track in (rules.track(FIRST, ids) for ids in packed) if isinstance(track, WordTrack)]
    queues = [Queues(own, ahead, script.max_padding, script.initial_padding) for own in words]
    executors = [
        WordReplies(rules, known, FIRST),
        WordReplies(rules, known, FIRST, DeviceArrays(torch.device("cpu"))),
        WordReplies(rules, known, FIRST, num_in_kernel=NUM_IN_KERNEL),
    ]
    num_wishes = num_ends = 0
    for row, drawn in enumerate(drawn_ids(seed)):
        position = FIRST + row
        found = [each.next(position, drawn) for each in executors]
        seconds = [each.seconds_at(position) for each in executors]
        for slot, own in enumerate(queues):
            main, second = own.next(position, int(drawn[slot]))
            shown = 7 + second if second >= 0 else rules.family.layout.pad_id
            is_over = own.end is not None and position - own.end >= script.tail_rows
            num_wishes, num_ends = num_wishes + (found[0][slot] == script.wish_id), num_ends + is_over
            for each, tokens, laid in zip(executors, found, seconds, strict=True):
                if slot >= len(tokens):
                    continue
                if is_over:
                    assert tokens[slot] == rules.family.end_of_audio
                else:
                    assert (3 if tokens[slot] == script.wish_id else tokens[slot]) == main
                assert laid[slot] == shown
                assert each.state(slot) == executors[0].state(slot)
                assert each.state(slot)["end"] == (-1 if own.end is None else own.end)
                assert each.state(slot)["taken"] == len(words[slot]) - len(own.words)
                assert not each.num_in_kernel or each.seconds[slot] == shown
    assert num_wishes > 50
    assert num_ends > 50


def extended(replies: WordReplies, track: WordTrack, ids: list[int], is_last: bool) -> np.ndarray:
    """Append words to the track of a reply; return the table entries."""
    entries = track.extend(ids, is_last)
    replies.extend(0, entries)
    replies.totals[0] = track.limits(replies.rules.family.tasks[0].sampling)["track_total"]
    return entries


@pytest.mark.parametrize("ahead", [0, 2, *by_night(1, 3)])
def test_incremental_words_match_whole_text_words(ahead: int) -> None:
    """A word is known once the word ahead of it is; the rows that known words suffice for never need another."""
    rules, random = SegmentRules(family(ahead), LENGTH), np.random.default_rng(5)
    for index, own in enumerate(texts(6)):
        whole = rules.track(FIRST, [each for word in own for each in pack_word(*word)] + [0])
        track = rules.track(FIRST, [], is_open=True)
        assert isinstance(whole, WordTrack)
        assert isinstance(track, WordTrack)
        reply = ReplyState.begin(rules, rules.family.tasks[0], FIRST, track)
        replies, reference = WordReplies(rules, [track], FIRST), WordReplies(rules, [whole], FIRST)
        parts, held = [pack_word(*word) for word in own], 0
        entries = [track.entries()]

        for position, drawn in enumerate(drawn_ids(index)[:, :1], FIRST):
            while position > track.num_known(reply):  # the row may need a word that has not arrived
                part, is_last = (parts.pop(0), False) if parts else ([0], True)
                entries.append(extended(replies, track, part, is_last))
                held += 1
            assert replies.next(position, drawn) == reference.next(position, drawn)
            assert replies.seconds_at(position) == reference.seconds_at(position)
            state = replies.state(0)
            reply.move(position + 1, [state[name] for name in rules.sent_state])
            if parts and random.random() < 0.1:
                entries.append(extended(replies, track, parts.pop(0), False))
        assert held > 0
        if not track.is_open:
            assert track.words == whole.words
            assert [track.word_tokens(at) for at in range(len(own))] == [tokens for tokens, _ in own]
            made = dict(np.concatenate(entries).tolist())
            wanted = whole.entries().tolist()
            assert made == dict(wanted)
