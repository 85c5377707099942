"""How many replies the engine is given at once: those that it runs, and a bounded number that wait for their first row.

A reply beyond that is refused before anything of it is queued: who is let in begins to hear soon, and who is not knows
it at once and may ask elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.engine.request.shared_stats import SharedStats
from stretto.errors import NoPlace

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

KEY = "max_waiting"  # in vLLM's `additional_config`


@dataclass(slots=True, eq=False)
class Place:
    """One reply's. has_begun: the engine knows of it, and whether it is still there can be asked."""

    request_id: str
    num_sequences: int
    has_begun: bool = False


class Places:
    """Of sequences, of which a guided reply has two. max_waiting: None for no bound.

    A reply has its place until the engine has made its last row, however slowly it is heard. One whose text is open and
    that waits for words has given it to others (`num_parked` says how many these are).
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int | None,
        is_in_engine: Callable[[str], bool],
        num_parked: Callable[[], int],
    ):
        self._max_running, self._max_waiting = max_running, max_waiting
        self._is_in_engine, self._num_parked = is_in_engine, num_parked
        self._places: set[Place] = set()

    @classmethod
    def of(cls, config: "VllmConfig", engine: "AsyncLLM", shared: SharedStats) -> "Places":
        """Those of all engines behind one front end."""
        assert isinstance(config.additional_config, dict)
        max_running = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size

        def is_in_engine(request_id: str) -> bool:
            return request_id in engine.output_processor.external_req_ids

        def num_parked() -> int:
            return int(shared.read().replies_without_words)

        return cls(max_running, config.additional_config.get(KEY), is_in_engine, num_parked)

    def num_taken(self) -> int:
        """Sequences of replies that the engine has not finished, or does not know of yet."""
        taken = sum(
            place.num_sequences for place in self._places if not place.has_begun or self._is_in_engine(place.request_id)
        )
        return max(0, taken - self._num_parked())

    @contextmanager
    def take(self, request_id: str, num_sequences: int) -> Iterator[Place]:
        """A place for as long as the block runs; NoPlace where there is none."""
        if self._max_waiting is not None and self._places:
            taken = self.num_taken()
            if taken and taken + num_sequences > self._max_running + self._max_waiting:
                raise NoPlace(
                    f"{taken} sequences are already in flight, of which {self._max_running} run and"
                    f" {self._max_waiting} may wait, and this reply has {num_sequences}; try again"
                )
        place = Place(request_id, num_sequences)
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)
