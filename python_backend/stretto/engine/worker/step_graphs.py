"""Captured steps: one graph for each variant and padded number of rows, replayed for every batch that fits it."""

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

LOGGER = logging.getLogger(__name__)
Work = Callable[[], None]
Kind = TypeVar("Kind", bound=Hashable)


class Graph(Protocol):
    """Launches that have been recorded, to be launched again at once."""

    def replay(self) -> None:
        """Launch them."""


class Recorder(Protocol):
    """What records launches; `worker/cuda_graphs.py` on a GPU."""

    def is_busy(self) -> bool:
        """Whether somebody records launches on this stream already."""

    def record(self, work: Work) -> Graph:
        """The launches of `work`, none of them made; raises what `work` raises, all as it was before."""


def padded_sizes(max_rows: int) -> list[int]:
    """The numbers of rows that are captured: 1, 2, 4, then by eights, from 256 on by sixteens, and `max_rows`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_rows, 16)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class StepGraphs(Generic[Kind]):
    """Runs steps, by a graph where there is one. Without a recorder every step is launched as it is.

    can_capture: whether a variant's launches at a size may be recorded at all.
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
        """What numbers of rows are padded to, the largest first."""
        return self._sizes[::-1]

    def padded(self, num_rows: int) -> int:
        """For how many rows a step of `num_rows` is launched."""
        return self._size_of[num_rows]

    def run(self, variant: Kind, num_rows: int) -> None:
        """Run a step of `num_rows`; the rows up to the size that is captured do nothing."""
        size = self.padded(num_rows)
        graph = self._graphs.get((variant, size))
        if graph is not None:
            graph.replay()
            return
        self._launch(variant, size)
        self._capture(variant, size)  # for the steps to come: what is recorded is not run

    def capture(self, variants: Iterable[Kind], sizes: Iterable[int] | None = None) -> None:
        """Capture `variants` at `sizes`, by default at all, the largest first, whose memory the others use again.

        The launches are made once before, as what is loaded or allocated at first use cannot be recorded; so no row may
        have anything to do.
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
        except RuntimeError as error:  # of any kind; the rule is that of `stretto.cuda_graphs`
            self._recorder = None
            self._graphs.clear()
            LOGGER.warning("steps of %d rows cannot be captured, they are launched one by one: %s", size, error)
