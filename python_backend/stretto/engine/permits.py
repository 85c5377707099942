"""Admission control: limits on the replies in flight, in total and per client host."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from stretto.config import EngineConfig
from stretto.engine.client import EngineClient
from stretto.engine.protocol import Adapter, SharedStats
from stretto.errors import NoCapacity
from stretto_contract.limits import IN_FLIGHT

MIN_FACTOR = 0.5  # minimum factor of one decrease
UNUSED_FACTOR = 0.97  # factor if less than half of the limit was in use
UNBOUNDED = 1024.0  # sequences; initial limit if none is configured
MIN_LIMIT = 4.0  # sequences: two guided replies, so that one slow reply cannot cause all others to be rejected


@dataclass(frozen=True, slots=True)
class AdmissionRecord:
    """Load of the server at the admission of a reply, from which the limit is adjusted.

    Attributes:
        in_flight: Sequences in flight when the reply was admitted, including its own.
        round: Round of the limit; each multiplicative decrease begins a new one.
    """

    num_sequences: int
    in_flight: int
    round: int


class FlightLimit:
    """Adaptive limit on sequences in flight, so that first frames arrive within a target time (AIMD).

    A late reply decreases the limit: in proportion to the delay if at least half of the limit is in use, otherwise
    slightly. Replies admitted before a proportional decrease are then ignored. If at least half is in use, timely
    replies increase the limit, by about 1 for every `value` of them.

    Attributes:
        value: The limit, in sequences, from `MIN_LIMIT` to `most`.
    """

    def __init__(self, target_s: float, most: float):
        self._most = min(most, UNBOUNDED)
        self.target_s = target_s
        self.value = self._most
        self._round = 0

    def enter(self, num_sequences: int, in_flight: int) -> AdmissionRecord:
        """Return the admission record of a reply; `in_flight` includes its own sequences."""
        return AdmissionRecord(num_sequences, in_flight, self._round)

    def record(self, entry: AdmissionRecord, first_frame_s: float) -> None:
        """Adjust the limit after a reply's first frame, which took `first_frame_s` seconds from admission."""
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


@dataclass(slots=True, eq=False)
class Permit:
    """Permission for one reply to be in flight.

    Attributes:
        num_sequences: Number of vLLM requests of the reply: 2 if guided, else 1.
        record_first_frame: Callback for the time from admission to the first frame, in seconds.
        has_begun: True once the engine has sent output for the request.
    """

    request_id: str
    num_sequences: int
    host: str = ""
    record_first_frame: Callable[[float], None] = lambda _: None
    has_begun: bool = False
    adapter: Adapter | None = None


class Permits:
    """Permits for replies in flight; a guided reply counts as two sequences.

    A reply keeps its permit until the engine has generated its last row, regardless of how slowly the client reads.
    Replies that are waiting for streamed text do not count.

    A single client host may use all permits. A host with fewer than its share is admitted nevertheless: the share is
    the limit divided by the number of hosts with replies in flight. All hosts together may then exceed the limit, and
    the engine preempts replies of the hosts that have the most (`ClientTurns`).

    Args:
        max_waiting: Maximum number of queued sequences; None for no limit.
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
        self._max_running = max_running
        self._max_waiting = max_waiting
        most = math.inf if max_waiting is None else max_running + max_waiting
        self._limit = FlightLimit(target_s, most) if target_s else None
        self._is_in_engine = is_in_engine
        self._num_blocked = num_blocked
        self._permits: set[Permit] = set()

    @classmethod
    def from_config(cls, config: EngineConfig, engine: EngineClient, shared: SharedStats) -> "Permits":
        """Return the permits shared by all data-parallel engines of one front end."""
        max_running = engine.ready.max_num_seqs * engine.num_engines

        def num_blocked() -> int:
            return int(shared.read().replies_without_words)

        return cls(max_running, config.max_waiting, engine.has, num_blocked, config.first_frame_target_s)

    def num_in_flight(self) -> int:
        """Return the number of sequences in flight, without replies that are waiting for streamed text."""
        return max(0, sum(self._taken().values()) - self._num_blocked())

    def _taken(self) -> Counter[str]:
        """Return the number of sequences in flight of each host."""
        taken = Counter[str]()
        for permit in self._permits:
            if not permit.has_begun or self._is_in_engine(permit.request_id):
                taken[permit.host] += permit.num_sequences
        return taken

    @contextmanager
    def acquire(self, request_id: str, num_sequences: int, is_timed: bool = True, host: str = "") -> Iterator[Permit]:
        """Hold a permit during a `with` block.

        Args:
            is_timed: True if the reply's time to first frame adjusts the limit.

        Raises:
            NoCapacity: If no permit is free, and the host has its share.
        """
        taken = self.num_in_flight() if self._permits else 0
        if taken:
            self._check_limits(taken, num_sequences, host)
        permit = Permit(request_id, num_sequences, host)
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

    def _check_limits(self, taken: int, num_sequences: int, host: str) -> None:
        by_host = self._taken()
        num_of_host = by_host[host]
        num_hosts = len(by_host.keys() | {host})
        # compared with the limit, and if it is exceeded, with the limit divided by the number of hosts
        wanted = min(taken + num_sequences, num_hosts * (num_of_host + num_sequences))
        in_flight = f"{taken} {IN_FLIGHT}"
        if host:
            in_flight += f", {num_of_host} of them from this host"
        if self._max_waiting is not None and wanted > self._max_running + self._max_waiting:
            raise NoCapacity(
                f"{in_flight} (limits: {self._max_running} running, {self._max_waiting} waiting), and this reply has"
                f" {num_sequences}; try again"
            )
        if self._limit and wanted > self._limit.value:
            raise NoCapacity(
                f"{in_flight}, the maximum for a first frame within "
                f"{self._limit.target_s:g} s, and this reply has {num_sequences}; try again"
            )
