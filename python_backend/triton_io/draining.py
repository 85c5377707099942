"""Whether the server is about to stop and takes no new requests."""

import os
from pathlib import Path

from python_backend.errors import Overloaded

VARIABLE = "STRETTO_DRAIN_FILE"


class DrainGate:
    """Closed while the file exists that the launcher named in the environment; always open without a launcher."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def from_environment(cls) -> "DrainGate":
        """The gate that this process's launcher controls."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named) if named else None)

    def check(self) -> None:
        """Raise Overloaded when the server is draining."""
        if self._path is not None and self._path.exists():
            raise Overloaded("server is draining")
