"""Captured steps: one graph per variant and padded number of rows."""

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

LOGGER = logging.getLogger(__name__)
Work = Callable[[], None]
Kind = TypeVar("Kind", bound=Hashable)


class Graph(Protocol):
    """Recorded launches that can be repeated."""

    def replay(self) -> None:
        """Repeat the launches."""


class Recorder(Protocol):
    """Recorder of launches."""

    def is_busy(self) -> bool:
        """Return True if launches on this stream are already being recorded."""

    def record(self, work: Work) -> Graph:
        """Return the launches of `work` without running them; errors of `work` are raised with the state restored."""


def padded_sizes(max_rows: int) -> list[int]:
    """Return the captured numbers of rows: 1, 2, 4, multiples of 8, from 256 on multiples of 16, and `max_rows`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_rows, 16)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class StepGraphs(Generic[Kind]):
    """Runner of steps that uses a graph if one exists. Without a recorder every step is launched directly.

    Args:
        launch: Function of variant and number of rows that launches a step.
        max_rows: Largest number of rows.
        recorder: Recorder, or None.
        can_capture: Returns True if the launches of a variant at a size may be recorded.
    """

    def __init__(
        self,
        launch: Callable[[Kind, int], None],
        max_rows: int,
        recorder: Recorder | None,
        can_capture: Callable[[Kind, int], bool],
    ):
        self._launch, self._recorder, self._can_capture = launch, recorder, can_capture
        self._sizes = padded_sizes(max_rows)
        self._size_of = [min(size for size in self._sizes if size >= num_rows) for num_rows in range(max_rows + 1)]
        self._graphs: dict[tuple[Kind, int], Graph] = {}

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    @property
    def sizes(self) -> list[int]:
        """Padded numbers of rows, largest first."""
        return self._sizes[::-1]

    def padded(self, num_rows: int) -> int:
        """Return the number of rows for which a step of `num_rows` is launched."""
        return self._size_of[num_rows]

    def run(self, variant: Kind, num_rows: int) -> None:
        """Run a step of `num_rows`; padding rows do nothing."""
        size = self.padded(num_rows)
        graph = self._graphs.get((variant, size))
        if graph is not None:
            graph.replay()
            return
        self._launch(variant, size)
        self._capture(variant, size)  # recording does not run the step; the graph is for later steps

    def capture(self, variants: Iterable[Kind], sizes: Iterable[int] | None = None) -> None:
        """Capture `variants` at `sizes` (default: all), largest first, so that smaller ones reuse the memory.

        Each step is launched once before, because first-use loading and allocation cannot be recorded. No row may have
        work.
        """
        for variant in variants:
            for size in self.sizes if sizes is None else sizes:
                if self._recorder is not None and (variant, size) not in self._graphs:
                    self._launch(variant, size)
                    self._capture(variant, size)

    def _capture(self, variant: Kind, size: int) -> None:
        recorder = self._recorder
        if recorder is None or not self._can_capture(variant, size) or recorder.is_busy():
            return
        try:
            self._graphs[variant, size] = recorder.record(lambda: self._launch(variant, size))
        except RuntimeError as error:  # of any kind, as in `stretto.cuda_graphs`
            self._recorder = None
            self._graphs.clear()
            LOGGER.warning("steps of %d rows cannot be captured, they are launched one by one: %s", size, error)
