"""Limit on replies given to the engine at once: those that run, and a bounded number that wait for their first row.

Further replies are rejected before anything is queued. Admitted requests therefore start quickly, and rejected ones can
be retried on another server at once. With a target for first frames, fewer are admitted while first frames are late.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stretto.engine.frontend.flight_limit import FlightLimit
from stretto.engine.request.shared_stats import SharedStats
from stretto.errors import NoPlace

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

KEY, TARGET_KEY = "max_waiting", "first_frame_target_s"  # keys in vLLM's `additional_config`


@dataclass(slots=True, eq=False)
class Place:
    """Permit of one reply.

    Attributes:
        request_id: Id of the reply.
        num_sequences: Number of its sequences: 2 if guided.
        see_first_frame: Callback that takes the time from admission to the first frame, in seconds.
        has_begun: True once the engine knows the reply.
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
    def of(cls, config: "VllmConfig", engine: "AsyncLLM", shared: SharedStats) -> "Places":
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
    def take(self, request_id: str, num_sequences: int, is_timed: bool = True) -> Iterator[Place]:
        """Hold a permit while the block runs; raise NoPlace if none is free (`is_timed`: it has a target)."""
        taken = self.num_taken() if self._places else 0
        if taken:
            self._check_room(taken, num_sequences)
        place = Place(request_id, num_sequences)
        if self._limit and is_timed:
            place.see_first_frame = partial(self._limit.see, self._limit.enter(num_sequences, taken + num_sequences))
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
            raise NoPlace(
                f"{taken} sequences are already in flight, of which {self._max_running} run and"
                f" {self._max_waiting} may wait, and this reply has {num_sequences}; try again"
            )
        if self._limit and wanted > self._limit.value:
            raise NoPlace(
                f"{taken} sequences are already in flight, as many as begin within {self._limit.target_s:g} s, and this"
                f" reply has {num_sequences}; try again"
            )
