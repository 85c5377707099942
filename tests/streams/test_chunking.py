"""Chunks are sent when a player needs them, and grow with the audio that it has buffered."""

import itertools
import random

import pytest

from stretto.streams.chunking import ChunkPolicy, DecoderLoad, DecodingTime, Pacer

FRAME_S = 0.04
LADDER = {1, 2, 4, 8, 16, 25}


class Line:
    """Frames that arrive at given times and pass through a pacer and a decoder with latency to a player."""

    def __init__(self, policy: ChunkPolicy, latency_s: float = 0.0, pace_s: float = 0.0) -> None:
        self.now = 0.0
        self.sizes: list[int] = []
        self.heard: list[tuple[float, int]] = []  # time at which a chunk is played, number of its audible frames
        self._known_s = self._latency_s = latency_s
        self._unplayed, self._ready = policy.unplayed_frames, 0
        time = DecodingTime(window_s=0.9 * pace_s)
        self._pacer = Pacer(policy, lambda: DecoderLoad(self._known_s, time), lambda: self.now)

    def slow_down(self, latency_s: float) -> None:
        """Make chunks take longer from now on."""
        self._latency_s = latency_s

    def run(self, times: list[float]) -> "Line":
        ready = self._ready
        for self.now in times:
            ready += 1
            while size := self._pacer.num_to_send(ready):
                ready -= size
                self.sizes.append(size)
                sounding = size - (self._unplayed if len(self.sizes) == 1 else 0)
                self.heard.append((self.now + self._latency_s, sounding))
        self._ready = ready
        return self

    def underrun_s(self, playout_s: float = 0.0) -> float:
        """Return the longest wait of a player that starts `playout_s` after the first chunk."""
        ends, worst = self.heard[0][0] + playout_s, 0.0
        for at, frames in self.heard:
            worst = max(worst, at - ends)
            ends = max(ends, at) + frames * FRAME_S
        return worst


def evenly(count: int, speed: float) -> list[float]:
    """Return arrival times of frames at `speed` times the playback rate."""
    return [index * FRAME_S / speed for index in range(1, count + 1)]


@pytest.mark.parametrize("latency_s", [0.0, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("speed", [1.0, 1.2, 2.0, 5.0, 50.0])
@pytest.mark.parametrize("silent_frames", [0, 1, 3])
def test_chunking_never_underruns_at_real_time_or_faster(silent_frames: int, speed: float, latency_s: float) -> None:
    line = Line(ChunkPolicy(4, 25, silent_frames=silent_frames), latency_s).run(evenly(500, speed))
    assert line.underrun_s() <= 1e-9
    assert set(line.sizes[1:]) <= LADDER


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("first", "silent", "size"), [(1, 1, 2), (2, 1, 2), (4, 1, 4), (2, 3, 4), (1, 0, 1)])
def test_silent_frames_count_as_frames_of_the_first_chunk(
    deterministic: bool, first: int, silent: int, size: int
) -> None:
    """At least one more frame goes with them, because a player begins with it."""
    policy = ChunkPolicy(first, 12, silent_frames=silent, deterministic=deterministic)
    pacer = Pacer(policy, lambda: DecoderLoad(frame_gap_s=0.001))
    assert [pacer.num_to_send(num_ready) for num_ready in range(1, size + 1)] == [0] * (size - 1) + [size]


def test_first_chunk_with_silent_frames_has_a_captured_size() -> None:
    """Two audible frames after the silent one are three frames, which no graph decodes."""
    policy = ChunkPolicy(3, 12, silent_frames=1, frame_rate=12.5)
    pacer = Pacer(policy, lambda: DecoderLoad(0.001, has_graphs=True, frame_gap_s=0.001))
    assert [pacer.num_to_send(num_ready) for num_ready in (2, 3, 4)] == [0, 0, 4]


def test_regular_frame_bursts_do_not_underrun() -> None:
    rng = random.Random(0)
    times = sorted(0.2 * (index // 5) + rng.uniform(0, 0.04) for index in range(600))
    line = Line(ChunkPolicy(8, 25), 0.02).run(times)
    assert line.underrun_s() <= 0.04


@pytest.mark.parametrize(("speed", "largest"), [(1.0, 4), (3.0, 25)])
def test_chunks_grow_only_with_a_playback_lead(speed: float, largest: int) -> None:
    line = Line(ChunkPolicy(4, 25), 0.01).run(evenly(500, speed))
    assert line.sizes[0] == 4
    assert max(line.sizes) == largest
    if largest == 25:
        assert all(size == 25 for size in line.sizes[8:])


@pytest.mark.parametrize("latency_s", [0.08, 0.25, 0.4])
def test_first_chunk_has_a_captured_size_if_the_decoder_has_graphs(latency_s: float) -> None:
    """Without graphs it has 3, 5 and 7 frames here."""
    policy = ChunkPolicy(1, 12, frame_rate=25)
    sizes = dict[bool, int]()
    for has_graphs in (False, True):
        load = DecoderLoad(latency_s, has_graphs=has_graphs, frame_gap_s=0.01)
        pacer = Pacer(policy, lambda load=load: load)
        sizes[has_graphs] = next(size for num_ready in range(1, 13) if (size := pacer.num_to_send(num_ready)))
    assert sizes[True] == next(size for size in policy.sizes if size >= sizes[False])


@pytest.mark.parametrize(("has_graphs", "size"), [(True, 2), (False, 1)])
def test_first_chunk_has_both_frames_if_two_are_ready(has_graphs: bool, size: int) -> None:
    """The first frame waits until the time between two is known, which is when the second one arrives."""
    clock = iter((0.0, 0.005))
    load = DecoderLoad(0.01, DecodingTime(0.004, 0.0, 0.0003), has_graphs=has_graphs)
    pacer = Pacer(ChunkPolicy(1, 12, frame_rate=12.5), lambda: load, lambda: next(clock))
    assert [pacer.num_to_send(num_ready) for num_ready in (1, 2)] == [0, size]


@pytest.mark.parametrize(("frame_gap_s", "size"), [(0.0, 0), (0.006, 1), (0.07, 0)])
def test_first_chunk_is_a_single_frame_if_frames_have_followed_quickly(frame_gap_s: float, size: int) -> None:
    """The first frame's own gap is not known yet."""
    load = DecoderLoad(0.01, DecodingTime(0.004, 0.0, 0.0003), frame_gap_s=frame_gap_s)
    pacer = Pacer(ChunkPolicy(1, 12, frame_rate=12.5), lambda: load)
    assert pacer.num_to_send(1) == size


def test_pacer_reports_the_time_between_frames() -> None:
    gaps, now = list[float](), [0.0]
    pacer = Pacer(ChunkPolicy(12, 12), clock=lambda: now[0], note_gap=gaps.append)
    for time_s, num_ready in ((0.0, 1), (0.5, 2), (0.6, 2), (0.75, 3)):
        now[0] = time_s
        pacer.num_to_send(num_ready)
    assert gaps == [0.5, 0.25]


def test_a_slow_decoder_makes_the_first_chunk_larger() -> None:
    sizes = [Line(ChunkPolicy(2, 25), latency_s).run(evenly(60, 2.0)).sizes[0] for latency_s in (0.0, 0.2, 9.0)]
    assert sizes == [2, 6, 25]


@pytest.mark.parametrize(
    ("speed", "latency_s", "first"),
    [(1.0, 0.012, 2), (8.0, 0.012, 1), (8.0, 0.03, 2), (1.0, 0.03, 2), (0.25, 0.012, 5)],
)
def test_first_chunk_is_smaller_with_fast_frames_and_idle_decoder(speed: float, latency_s: float, first: int) -> None:
    line = Line(ChunkPolicy(1, 25), latency_s).run(evenly(300, speed))
    assert line.sizes[0] == first
    assert speed < 1 or line.underrun_s() <= 1e-9


@pytest.mark.parametrize(("pace_s", "smallest"), [(0.0, 1), (0.1, 4), (0.3, 8), (9.0, 25)])
def test_chunks_are_not_smaller_than_the_decoder_pace_allows(pace_s: float, smallest: int) -> None:
    line = Line(ChunkPolicy(1, 25), 0.02, pace_s).run(evenly(500, 1.0))
    assert min(line.sizes) == smallest
    assert line.underrun_s() <= 1e-9


FAST = DecodingTime(0.0052, 0.0, 0.00385)  # of a small decoder on an AMD EPYC


@pytest.mark.parametrize(
    ("num_speaking", "sizes"),
    [(1, [1, 1, 2, 4, 8]), (8, [1, 1, 2, 4, 8]), (16, [2, 1, 2, 2, 2]), (32, [12, 12, 12, 12, 12])],
)
def test_a_chunk_is_no_larger_than_a_round_of_all_utterances_permits(num_speaking: int, sizes: list[int]) -> None:
    """All utterances send the same chunks. 16 of them keep the decoder 80 % busy, 32 overload it."""
    now, load = 0.0, DecoderLoad(0.01, FAST, num_speaking)
    pacer = Pacer(ChunkPolicy(1, 12, frame_rate=12.5), lambda: load, lambda: now)
    sent, done_s, dry_s = list[int](), 0.0, None
    for row in range(1, 200):
        now = 0.015 * row
        while size := pacer.num_to_send(row - sum(sent)):
            sent.append(size)
            done_s = max(now, done_s) + load.round_s(size)
            assert dry_s is None or num_speaking == 32 or done_s <= dry_s, "the last of them to be decoded waits"
            dry_s = (done_s if dry_s is None else dry_s) + size / 12.5
    assert sent[:5] == sizes


def test_slow_frames_are_sent_without_waiting() -> None:
    line = Line(ChunkPolicy(4, 25), 0.02).run(evenly(100, 0.5))
    assert set(line.sizes[8:]) == {1}


def test_chunking_recovers_after_a_late_stretch() -> None:
    slow = evenly(40, 0.25)
    line = Line(ChunkPolicy(4, 25)).run([*slow, *(slow[-1] + at for at in evenly(300, 1.0))])
    assert line.underrun_s() > 0.1
    line.heard = [(at, frames) for at, frames in line.heard if at > slow[-1] + 2]
    assert line.underrun_s() <= 1e-9


def test_first_chunk_adds_the_frames_held_by_the_codec() -> None:
    line = Line(ChunkPolicy(4, 25, held_frames=10), 0.01).run(evenly(300, 1.0))
    assert line.sizes[0] == 14
    assert line.underrun_s() <= 1e-9


def test_playout_delay_allows_larger_chunks() -> None:
    patient, eager = (Line(ChunkPolicy(4, 25, playout_s=playout_s)).run(evenly(300, 1.0)) for playout_s in (0.5, 0.0))
    assert len(patient.sizes) < len(eager.sizes) / 2
    assert patient.sizes[0] == eager.sizes[0]
    assert patient.underrun_s(0.5) <= 1e-9


def test_chunk_size_at_most_doubles() -> None:
    line = Line(ChunkPolicy(3, 25), 0.01).run(evenly(200, 50.0))
    assert line.sizes[:4] == [3, 4, 8, 16]
    assert set(line.sizes[4:]) == {25}


def test_chunking_tolerates_sudden_doubling_of_decode_time() -> None:
    line = Line(ChunkPolicy(4, 25), 0.02)
    line.run(evenly(60, 1.0))
    line.slow_down(0.04)
    line.run([60 * FRAME_S + at for at in evenly(60, 1.0)])
    assert line.underrun_s() <= 1e-9


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("first", "steady", "held"), [(4, 25, 0), (8, 25, 10), (3, 3, 2), (1, 40, 1)])
def test_deterministic_chunk_sizes_ignore_clock_and_load(seed: int, first: int, steady: int, held: int) -> None:
    draw = random.Random(seed)
    policy = ChunkPolicy(first, steady, draw.random(), held_frames=held, deterministic=True)
    line = Line(policy, latency_s=draw.random(), pace_s=draw.random())
    times = sorted(draw.random() * 9 for _ in range(150))
    line.run(times[:40])
    line.slow_down(2.0)
    line.run(times[40:])
    sizes, last = [held + first], first
    while sum(sizes) + (last := policy.round_down(2 * last)) <= 150:
        sizes.append(last)
    assert line.sizes == sizes


def test_block_codec_chunks_are_sent_as_whole_blocks() -> None:
    policy = ChunkPolicy(blocks=(25, 50, 100), frame_rate=12.5, held_frames=6)
    pacer = Pacer(policy, lambda: DecoderLoad(3.0, DecodingTime(9.0)), clock=lambda: 0.0)
    assert [pacer.num_to_send(ready) for ready in (24, 25, 49, 80, 30, 99, 100, 300)] == [0, 25, 0, 50, 0, 0, 100, 100]


def test_chunk_sizes_are_powers_of_two_or_the_steady_size() -> None:
    policy = ChunkPolicy(1, 25)
    assert {policy.round_down(count) for count in range(1, 60)} == LADDER
    assert all(policy.round_down(count) <= count for count in range(1, 60))
    assert all(a <= b for a, b in itertools.pairwise(policy.round_down(count) for count in range(1, 60)))


@pytest.mark.parametrize(("first", "steady"), [(0, 5), (6, 5), (-1, 5)])
def test_invalid_chunk_policy_is_refused(first: int, steady: int) -> None:
    with pytest.raises(ValueError, match="first_frames <= steady_frames"):
        ChunkPolicy(first, steady)


@pytest.mark.parametrize("wrong", [{"playout_s": -1.0}, {"playout_s": float("inf")}, {"frame_rate": 0.0}])
def test_invalid_playout_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="playout_s"):
        ChunkPolicy(4, 25, **wrong)


@pytest.mark.parametrize(("held_frames", "silent_frames"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_ready_frames_are_sent_before_a_reply_blocks(held_frames: int, silent_frames: int) -> None:
    now = 0.0
    unplayed = held_frames + silent_frames
    pacer = Pacer(ChunkPolicy(9, 25, held_frames=held_frames, silent_frames=silent_frames), clock=lambda: now)
    assert pacer.num_to_send(unplayed + 7) == 0
    pacer.is_stalled = True
    assert pacer.num_to_send(unplayed) == 0, "nothing of it would be heard"
    left, sizes = unplayed + 7, []
    while size := pacer.num_to_send(left):
        sizes.append(size)
        left -= size
    assert sizes == [unplayed + 4, 2, 1]
    now, pacer.is_stalled = 30.0, False  # how long it stood still is no frame's wait
    assert pacer.num_to_send(1) == 1, "the listener has nothing left"
    now = 30.001
    assert pacer.num_to_send(1) == 0, "and now enough for a while"


def test_deterministic_chunks_ignore_blocking_on_text() -> None:
    pacer = Pacer(ChunkPolicy(4, 25, deterministic=True))
    pacer.is_stalled = True
    assert [pacer.num_to_send(num_ready) for num_ready in (3, 4, 7, 8)] == [0, 4, 0, 8]
