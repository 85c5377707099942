"""Words that the model asks for: host, arrays and GPU kernel follow queues of tokens, for random words and ids."""

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stretto.engine.kernels.gpu.step_draw import COLUMNS, DRAWS
from stretto.engine.reply_rules import SegmentRules, SegmentTracker
from stretto.engine.tracks import NO_SECOND, WordMachine, WordTrack
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import LIMITS, STATE, DeviceArrays, HostArrays, SlotLimits, SlotState, SlotTables
from stretto.engine.worker.word_states import WordLaunch, WordStates
from stretto.families.base import Family
from stretto.records.prompt import pack_word
from tests.small_vocabularies import KYUTAI_TTS
from tests.tiers import by_night

NUM_REPLIES, LENGTH, FIRST = 40, 160, 3
NUM_IN_KERNEL = 3  # replies that the interpreted kernel follows
Word = tuple[list[int], int]


def family(ahead: int) -> Family:
    """Return a family whose second stream shows the word that is `ahead` words further."""
    track = KYUTAI_TTS.text_track
    assert track is not None
    assert track.words is not None
    words = replace(track.words, ahead=ahead, second_base=7, max_padding=5, initial_padding=2, tail_rows=4)
    return replace(KYUTAI_TTS, text_track=replace(track, words=words))


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


class Device:
    """One of the two implementations for a batch: arrays, or the kernel."""

    def __init__(self, rules: SegmentRules, tracks: list[WordTrack], arrays: Any, is_kernel: bool):
        self.tables = SlotTables(NUM_REPLIES, rules, torch.device("cpu"))
        self.rules, self.arrays, self.is_kernel = rules, arrays, is_kernel
        script = rules.family.word_script
        assert script is not None
        for slot, track in enumerate(tracks):
            for place, value in np.concatenate([track.token_entries(), track.word_entries()]).tolist():
                self.tables.words[slot, place] = value
            self.tables.word_state[slot] = torch.tensor(WordMachine(track).state)
        self.tables.state[:, STATE["audio_start"]] = FIRST
        self.tables.state[:, STATE["audio_end"]] = -1
        self.totals = torch.tensor([track.num_total for track in tracks])
        self.states = WordStates(script, rules, self.tables, arrays)
        self.launch = WordLaunch(rules, self.tables, NUM_REPLIES)

    def next(self, position: int, drawn: np.ndarray) -> np.ndarray:
        """Return stream 0 of each reply in the row at `position`."""
        slots = torch.arange(NUM_REPLIES)
        if self.is_kernel:
            plan = torch.zeros(len(COLUMNS), NUM_REPLIES, dtype=torch.int32)
            plan[COLUMNS.index("role")] = DRAWS.value
            plan[COLUMNS.index("slot")] = plan[COLUMNS.index("other")] = slots
            plan[COLUMNS.index("given_total")] = self.totals
            tokens = torch.from_numpy(drawn.astype(np.int32))[:, None]
            lengths = torch.full((NUM_REPLIES,), position, dtype=torch.int32)
            self.seconds = torch.full_like(lengths, -5)
            self.launch(tokens, plan, lengths, NUM_IN_KERNEL, self.seconds)
            return tokens[:NUM_IN_KERNEL, 0].numpy()
        limits = {name: self.arrays.zeros(NUM_REPLIES) for name in LIMITS}
        limits["given_total"] = self.arrays.upload(self.totals.numpy())
        state = SlotState(*self.arrays.wrap(self.tables.state).T)
        where = self.arrays.upload(slots.numpy()), self.arrays.zeros(NUM_REPLIES) + position
        none: Any = None
        rows = Rows(state, SlotLimits(**limits), none, *where)
        return np.asarray(self.states.follow(self.arrays.upload(drawn), rows))


@pytest.mark.parametrize("ahead", [0, 2, *by_night(1, 3)])
@pytest.mark.parametrize("seed", [1, *by_night(2, 3, 4)])
def test_host_and_kernel_word_states_match_reference_queues(ahead: int, seed: int) -> None:
    """A second machine sees only stream 0 of the rows, as after a preemption, and has the same state."""
    rules = SegmentRules(family(ahead), LENGTH)
    script, words = rules.family.word_script, texts(seed)
    assert script is not None
    packed = [[each for word in own for each in pack_word(*word)] + [0] for own in words]
    tracks = [rules.track(FIRST, ids) for ids in packed]
    known = [track for track in tracks if isinstance(track, WordTrack)]
    queues = [Queues(own, ahead, script.max_padding, script.initial_padding) for own in words]
    machines, seen = [WordMachine(track) for track in known], [WordMachine(track) for track in known]
    devices = [
        Device(rules, known, HostArrays(), False),
        Device(rules, known, DeviceArrays(torch.device("cpu")), False),
    ]
    devices += [Device(rules, known, HostArrays(), True)]
    num_wishes = num_ends = 0
    for row, drawn in enumerate(drawn_ids(seed)):
        position = FIRST + row
        found = [device.next(position, drawn) for device in devices]
        for slot, (own, machine, follower) in enumerate(zip(queues, machines, seen, strict=True)):
            main, second = own.next(position, int(drawn[slot]))
            said = machine.push(position, int(drawn[slot]))
            shown = 7 + second if second >= 0 else NO_SECOND
            assert ((3 if said[0] == script.wish_id else said[0]), said[1]) == (main, shown)
            assert machine.end == (-1 if own.end is None else own.end)
            follower.follow(position, said[0])
            assert follower.state == machine.state
            is_over = own.end is not None and position - own.end >= script.tail_rows
            num_wishes, num_ends = num_wishes + (said[0] == script.wish_id), num_ends + is_over
            laid = 7 + second if second >= 0 else rules.family.layout.pad_id
            for device, tokens in zip(devices, found, strict=True):
                if slot >= len(tokens):
                    continue
                assert tokens[slot] == (rules.family.end_of_audio if is_over else said[0])
                assert device.tables.codes[slot, position, rules.family.track_streams.start - 1] == laid
                assert device.tables.word_state[slot].tolist() == machine.state
                assert not device.is_kernel or device.seconds[slot] == laid
    assert num_wishes > 50
    assert num_ends > 50


@pytest.mark.parametrize("ahead", range(4))
def test_incremental_words_match_whole_text_words(ahead: int) -> None:
    """A word is known once the word ahead of it is; the rows that known words suffice for never need another."""
    rules, random = SegmentRules(family(ahead), LENGTH), np.random.default_rng(5)
    script = rules.family.word_script
    assert script is not None
    for index, own in enumerate(texts(6)):
        whole = rules.track(FIRST, [each for word in own for each in pack_word(*word)] + [0])
        track = rules.track(FIRST, [], is_open=True)
        assert isinstance(whole, WordTrack)
        assert isinstance(track, WordTrack)
        tracker = SegmentTracker(rules, rules.family.tasks[0], FIRST)
        tracker.words, reference = WordMachine(track), WordMachine(whole)
        parts, held = [pack_word(*word) for word in own], 0
        entries = [track.token_entries()]
        for drawn in drawn_ids(index)[:, 0]:
            while tracker.position > track.num_known:  # the row may need a word that has not arrived
                part, is_last = (parts.pop(0), False) if parts else ([0], True)
                entries.append(track.extend(part, is_last))
                track.follow(tracker)
                held += 1
            expected = reference.push(tracker.position, int(drawn))
            assert tracker.words.push(tracker.position, int(drawn)) == expected
            tracker.position += 1
            track.follow(tracker)
            if parts and random.random() < 0.1:
                entries.append(track.extend(parts.pop(0), False))
                track.follow(tracker)
        assert held > 0
        if not track.is_open:
            assert track.words == whole.words
            made = dict(np.concatenate(entries).tolist())
            wanted = np.concatenate([whole.token_entries(), whole.word_entries()]).tolist()
            assert made == dict(wanted)
