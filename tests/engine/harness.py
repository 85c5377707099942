"""`stretto.testing`'s engine, with imported objects set aside from garbage collection."""

from typing import Any, Self

from stretto.testing.conformance import DEFAULTS, Answer
from stretto.testing.conformance import Engine as SteppedEngine
from tests import heap

__all__ = ["DEFAULTS", "Answer", "Engine"]


class Engine(SteppedEngine):
    """One engine core, its scheduler and its worker; a context manager that shuts it down."""

    def __init__(self, *arguments: Any, **engine_args: Any) -> None:
        heap.set_aside()
        super().__init__(*arguments, **engine_args)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
