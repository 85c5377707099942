"""Admission control: a limit on replies in flight that follows the measured times to first frame; and counters."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stretto.engine.protocol import SharedStats, num_guided
from stretto.errors import NoCapacity
from stretto.records.chunk import GuidanceChange
from stretto.records.sampling import SamplingConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

MIN_FACTOR = 0.5  # minimum factor of one decrease
UNUSED_FACTOR = 0.97  # factor if less than half of the limit was in use
UNBOUNDED = 1024.0  # sequences; initial limit if none is configured
MIN_LIMIT = 4.0  # sequences: two guided replies, so that one slow reply cannot cause all others to be rejected


@dataclass(frozen=True, slots=True)
class Entry:
    """Admission record of a reply.

    Attributes:
        num_sequences: Number of vLLM requests of the reply: 2 if guided, else 1.
        in_flight: Sequences in flight when the reply was admitted, including its own.
        round: Round of the limit; each multiplicative decrease begins a new one.
    """

    num_sequences: int
    in_flight: int
    round: int


class FlightLimit:
    """Adaptive limit on sequences in flight, so that first frames arrive within a target time (AIMD).

    If at least half of the limit is in use, a late reply decreases it in proportion to the delay, and replies admitted
    before the decrease are ignored from then on. If less is in use, a late reply decreases it slightly. If at least
    half is in use, a timely reply increases it slightly: by about 1 after `value` timely replies.

    Args:
        target_s: Target time to the first frame, in seconds.
        most: Upper bound of the limit.

    Attributes:
        value: The limit, in sequences, from `MIN_LIMIT` to `most`.
    """

    def __init__(self, target_s: float, most: float):
        self._most = min(most, UNBOUNDED)
        self.target_s, self.value, self._round = target_s, self._most, 0

    def enter(self, num_sequences: int, in_flight: int) -> Entry:
        """Return the admission record of a reply; `in_flight` includes its own sequences."""
        return Entry(num_sequences, in_flight, self._round)

    def record(self, entry: Entry, first_frame_s: float) -> None:
        """Adjust the limit to a reply's time from admission to its first frame, in seconds."""
        if entry.round != self._round:
            return
        is_used = 2 * entry.in_flight >= self.value
        if first_frame_s <= self.target_s:
            if is_used:
                raised = self.value + min(entry.num_sequences, entry.num_sequences**2 / self.value)
                self.value = min(self._most, raised)
        elif not is_used:
            self.value = max(UNUSED_FACTOR * self.value, 2.0 * entry.in_flight)
        elif entry.in_flight > entry.num_sequences:
            cut = max(MIN_FACTOR, self.target_s / first_frame_s)
            self.value = min(self._most, max(MIN_LIMIT, cut * self.value))
            self._round += 1


KEY, TARGET_KEY = "max_waiting", "first_frame_target_s"  # keys in vLLM's `additional_config`


@dataclass(slots=True, eq=False)
class Permit:
    """Permit of one reply.

    Attributes:
        request_id: Id of the request.
        num_sequences: Number of vLLM requests of the reply: 2 if guided, else 1.
        record_first_frame: Callback for the time from admission to the first frame, in seconds.
        has_begun: True once the engine has received the request.
    """

    request_id: str
    num_sequences: int
    record_first_frame: Callable[[float], None] = lambda _: None
    has_begun: bool = False


class Permits:
    """Permits for replies in flight; a guided reply counts as two sequences.

    A reply keeps its permit until the engine has generated its last row, regardless of how slowly the client reads.
    Replies that are waiting for streamed text do not count.

    Args:
        max_running: Maximum number of sequences in the engine's batches.
        max_waiting: Maximum number of queued sequences; None for no limit.
        is_in_engine: Returns True while the engine has the request with this id.
        num_blocked: Returns the number of replies that are waiting for streamed text.
        target_s: Target time to the first frame in seconds, see `FlightLimit`; None for no adaptive limit.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int | None,
        is_in_engine: Callable[[str], bool],
        num_blocked: Callable[[], int],
        target_s: float | None = None,
    ):
        self._max_running, self._max_waiting = max_running, max_waiting
        most = math.inf if max_waiting is None else max_running + max_waiting
        self._limit = FlightLimit(target_s, most) if target_s else None
        self._is_in_engine, self._num_blocked = is_in_engine, num_blocked
        self._permits: set[Permit] = set()

    @classmethod
    def from_config(cls, config: "VllmConfig", engine: "AsyncLLM", shared: SharedStats) -> "Permits":
        """Return the permits shared by all data-parallel engines of one front end."""
        assert isinstance(config.additional_config, dict)
        max_running = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size

        def is_in_engine(request_id: str) -> bool:
            return request_id in engine.output_processor.external_req_ids

        def num_blocked() -> int:
            return int(shared.read().replies_without_words)

        waiting, target_s = (config.additional_config.get(key) for key in (KEY, TARGET_KEY))
        return cls(max_running, waiting, is_in_engine, num_blocked, target_s)

    def num_in_flight(self) -> int:
        """Return the number of sequences in flight: not yet received by the engine, or not finished by it."""
        taken = sum(
            permit.num_sequences
            for permit in self._permits
            if not permit.has_begun or self._is_in_engine(permit.request_id)
        )
        return max(0, taken - self._num_blocked())

    @contextmanager
    def acquire(self, request_id: str, num_sequences: int, is_timed: bool = True) -> Iterator[Permit]:
        """Hold a permit for the duration of a `with` block.

        Args:
            request_id: Id of the request.
            num_sequences: Number of vLLM requests of the reply.
            is_timed: True if its time to first frame adjusts the limit.

        Raises:
            NoCapacity: If no permit is free.
        """
        taken = self.num_in_flight() if self._permits else 0
        if taken:
            self._check_limits(taken, num_sequences)
        permit = Permit(request_id, num_sequences)
        if self._limit and is_timed:
            permit.record_first_frame = partial(
                self._limit.record, self._limit.enter(num_sequences, taken + num_sequences)
            )
        self._permits.add(permit)
        begun = time.perf_counter()
        try:
            yield permit
        finally:
            self._permits.discard(permit)
            waited_s = time.perf_counter() - begun
            if self._limit and not permit.has_begun and waited_s > self._limit.target_s:
                permit.record_first_frame(waited_s)  # a client that gives up before the first step counts as late

    def _check_limits(self, taken: int, num_sequences: int) -> None:
        wanted = taken + num_sequences
        if self._max_waiting is not None and wanted > self._max_running + self._max_waiting:
            raise NoCapacity(
                f"{taken} sequences are already in flight (limits: {self._max_running} running,"
                f" {self._max_waiting} waiting), and this reply has {num_sequences}; try again"
            )
        if self._limit and wanted > self._limit.value:
            raise NoCapacity(
                f"{taken} sequences are already in flight, as many as allow a first frame within "
                f"{self._limit.target_s:g} s, and this reply has {num_sequences}; try again"
            )


@dataclass
class Stats:
    """Counters since start-up, published as metrics.

    Attributes:
        active: Replies in progress.
        pairs: Guided replies among them.
        finished_total: Finished replies.
        frames_total: Generated frames.
        unguided_total: Frames sampled without guidance in requests with policy `always`. Any value but 0 is a bug.
        frames_unguided_by_policy_total: Frames sampled without guidance in guided requests with another policy.
        live_sessions: Live sessions that are open.
        live_refused_total: Live sessions that were refused, because too many were open.
        live_frames_total: Frames of audio that live sessions have received.
        live_late_frames_total: Frames of sessions that have ended, read more than a frame after they were due.
    """

    active: int = 0
    pairs: int = 0
    finished_total: int = 0
    frames_total: int = 0
    unguided_total: int = 0
    frames_unguided_by_policy_total: int = 0
    live_sessions: int = 0
    live_refused_total: int = 0
    live_frames_total: int = 0
    live_late_frames_total: int = 0


class FrameStats:
    """Frame counts of one reply, added to the shared counters with each chunk."""

    def __init__(self, stats: Stats, sampling: SamplingConfig):
        self._stats = stats
        self._is_guided, self._policy = sampling.is_guided, sampling.policy
        self._num_frames = self._num_unguided = 0

    def record(self, num_frames: int, changes: Sequence[GuidanceChange]) -> None:
        """Count the frames generated since the last call, and how many of them were sampled without guidance.

        Args:
            num_frames: Number of frames of the reply so far.
            changes: All guidance changes of the reply so far.
        """
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
