"""Limits on replies in flight, derived from the measured reply times, and front-end counters."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stretto.engine.protocol import SharedStats
from stretto.errors import NoCapacity

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM
from collections.abc import Sequence

from stretto.engine.protocol import num_guided
from stretto.records.chunk import GuidanceChange
from stretto.records.sampling import SamplingConfig

GREATEST_CUT = 0.5  # smallest factor of one decrease, however late the reply is
UNUSED_CUT = 0.97  # factor if less than half of the limit was in use
UNBOUNDED = 1024.0  # sequences; initial limit if none is configured
LEAST = 4.0  # sequences: two guided replies, so that one slow reply cannot cause all others to be rejected


@dataclass(frozen=True, slots=True)
class Entry:
    """Admission record of a reply.

    Attributes:
        num_sequences: Sequences of the reply.
        in_flight: Sequences in flight at admission, its own included.
        round: Round of the limit; a round ends at each multiplicative decrease.
    """

    num_sequences: int
    in_flight: int
    round: int


class FlightLimit:
    """Limit `value` on sequences in flight, between `LEAST` and `most`, for first frames within `target_s`.

    If at least half of the limit is in use, a late reply decreases it in proportion to the delay. This ends the round,
    so that replies admitted before are ignored. If less is in use, a late reply decreases it slightly. A timely reply
    with at least half in use increases it, by one for as many replies as the limit allows.
    """

    def __init__(self, target_s: float, most: float):
        self._most = min(most, UNBOUNDED)
        self.target_s, self.value, self._round = target_s, self._most, 0

    def enter(self, num_sequences: int, in_flight: int) -> Entry:
        """Return the admission record of a reply."""
        return Entry(num_sequences, in_flight, self._round)

    def record(self, entry: Entry, first_frame_s: float) -> None:
        """Update the limit with the time from admission to the first frame of a reply, in seconds."""
        if entry.round != self._round:
            return
        is_used = 2 * entry.in_flight >= self.value
        if first_frame_s <= self.target_s:
            if is_used:
                raised = self.value + min(entry.num_sequences, entry.num_sequences**2 / self.value)
                self.value = min(self._most, raised)
        elif not is_used:
            self.value = max(UNUSED_CUT * self.value, 2.0 * entry.in_flight)
        elif entry.in_flight > entry.num_sequences:
            cut = max(GREATEST_CUT, self.target_s / first_frame_s)
            self.value = min(self._most, max(LEAST, cut * self.value))
            self._round += 1


KEY, TARGET_KEY = "max_waiting", "first_frame_target_s"  # keys in vLLM's `additional_config`


@dataclass(slots=True, eq=False)
class Place:
    """Permit of one reply.

    Attributes:
        request_id: Id of the reply.
        num_sequences: Number of its sequences: 2 if guided.
        see_first_frame: Callback that takes the time from admission to the first frame, in seconds.
        has_begun: True once the engine has received the reply.
    """

    request_id: str
    num_sequences: int
    see_first_frame: Callable[[float], None] = lambda _: None
    has_begun: bool = False


class Places:
    """Permits for sequences; a guided reply needs two.

    A reply keeps its permit until the engine has generated its last row, however slowly the client reads. A reply
    blocked on streamed text does not count.

    Args:
        max_running: Sequences that run at once.
        max_waiting: Sequences that may wait, or None for no limit.
        is_in_engine: Function of a request id that returns True while the engine has the request.
        num_parked: Function that returns the number of replies blocked on streamed text.
        target_s: Target time to the first frame in seconds, see `FlightLimit`.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int | None,
        is_in_engine: Callable[[str], bool],
        num_parked: Callable[[], int],
        target_s: float | None = None,
    ):
        self._max_running, self._max_waiting = max_running, max_waiting
        most = math.inf if max_waiting is None else max_running + max_waiting
        self._limit = FlightLimit(target_s, most) if target_s else None
        self._is_in_engine, self._num_parked = is_in_engine, num_parked
        self._places: set[Place] = set()

    @classmethod
    def from_config(cls, config: "VllmConfig", engine: "AsyncLLM", shared: SharedStats) -> "Places":
        """Return the permits of all engines behind one front end."""
        assert isinstance(config.additional_config, dict)
        max_running = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size

        def is_in_engine(request_id: str) -> bool:
            return request_id in engine.output_processor.external_req_ids

        def num_parked() -> int:
            return int(shared.read().replies_without_words)

        waiting, target_s = (config.additional_config.get(key) for key in (KEY, TARGET_KEY))
        return cls(max_running, waiting, is_in_engine, num_parked, target_s)

    def num_taken(self) -> int:
        """Return the number of sequences of replies that the engine has not finished or has not received yet."""
        taken = sum(
            place.num_sequences for place in self._places if not place.has_begun or self._is_in_engine(place.request_id)
        )
        return max(0, taken - self._num_parked())

    @contextmanager
    def acquire(self, request_id: str, num_sequences: int, is_timed: bool = True) -> Iterator[Place]:
        """Hold a permit while the block runs.

        Args:
            request_id: Id of the reply.
            num_sequences: Number of its sequences.
            is_timed: True if its first frame counts for the target time.

        Raises:
            NoCapacity: If no permit is free.
        """
        taken = self.num_taken() if self._places else 0
        if taken:
            self._check_room(taken, num_sequences)
        place = Place(request_id, num_sequences)
        if self._limit and is_timed:
            place.see_first_frame = partial(self._limit.record, self._limit.enter(num_sequences, taken + num_sequences))
        self._places.add(place)
        begun = time.perf_counter()
        try:
            yield place
        finally:
            self._places.discard(place)
            waited_s = time.perf_counter() - begun
            if self._limit and not place.has_begun and waited_s > self._limit.target_s:
                place.see_first_frame(waited_s)  # a client that gives up before the first step counts as late

    def _check_room(self, taken: int, num_sequences: int) -> None:
        wanted = taken + num_sequences
        if self._max_waiting is not None and wanted > self._max_running + self._max_waiting:
            raise NoCapacity(
                f"{taken} sequences are already in flight, of which {self._max_running} run and"
                f" {self._max_waiting} may wait, and this reply has {num_sequences}; try again"
            )
        if self._limit and wanted > self._limit.value:
            raise NoCapacity(
                f"{taken} sequences are already in flight, the limit for a first frame within "
                f"{self._limit.target_s:g} s, and this reply has {num_sequences}; try again"
            )


@dataclass
class Stats:
    """Counters since start-up, for metrics.

    Attributes:
        active: Replies in progress.
        pairs: Guided replies among them.
        finished_total: Replies finished.
        frames_total: Frames generated.
        unguided_total: Frames of requests with policy `always` sampled without guidance. Any value but 0 is a bug.
        frames_unguided_by_policy_total: Unguided frames of guided requests with another policy.
    """

    active: int = 0
    pairs: int = 0
    finished_total: int = 0
    frames_total: int = 0
    unguided_total: int = 0
    frames_unguided_by_policy_total: int = 0


class FrameStats:
    """Frame counts of one reply, added to the counters chunk by chunk."""

    def __init__(self, stats: Stats, sampling: SamplingConfig):
        self._stats = stats
        self._is_guided, self._policy = sampling.is_guided, sampling.policy
        self._num_frames = self._num_unguided = 0

    def record(self, num_frames: int, changes: Sequence[GuidanceChange]) -> None:
        """Count frames up to `num_frames`, and those without guidance, which stops or resumes at `changes`."""
        self._stats.frames_total += num_frames - self._num_frames
        self._num_frames = num_frames
        if not self._is_guided:
            return
        num_unguided = num_frames - num_guided([change.frame for change in changes], num_frames)
        if self._policy == "always":
            self._stats.unguided_total += num_unguided - self._num_unguided
        else:
            self._stats.frames_unguided_by_policy_total += num_unguided - self._num_unguided
        self._num_unguided = num_unguided
