"""The suite of a family's tests with the engine of this repository's tests."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.testing import suite

if TYPE_CHECKING:
    from tests.engine.harness import Engine


class FamilySuite(suite.FamilySuite):
    """Suite whose engines compute attention in tiles as with a small cache."""

    def start_engine(self, checkpoint: Path, **arguments: Any) -> "Engine":
        """Return an engine for a checkpoint."""
        from tests.engine.harness import Engine

        return Engine(checkpoint, **arguments)
