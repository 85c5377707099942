"""Environment variables of the server and its stubs."""

import os
from collections.abc import Mapping
from pathlib import Path

from stretto.departures import DEPARTURES_FILE
from stretto.serving.folders import PACKAGE, cache_folder
from stretto.serving.installation import Installation
from stretto.serving.leftovers import LAUNCH_ID, Launch
from stretto.triton_io.draining import DRAIN_FILE
from stretto.triton_io.stub import LARGE

# Return larger blocks to the system when they are freed. Otherwise malloc keeps fragmented blocks of processed files,
# and Triton grows ("Large files of others" in benchmarks/README.md). Its 130 threads share two arenas instead of up to
# eight per core, each with its own fragmentation. See mallopt(3); stubs that compute set the first two themselves.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGE),
    "MALLOC_TRIM_THRESHOLD_": str(LARGE),
    "MALLOC_ARENA_MAX": "2",
}


def server_environment(
    installation: Installation, launch: Launch, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of the server.

    The interpreter's folder comes first in PATH because the stub derives the virtual environment from it, not from
    PYTHONPATH. SPT_NOENV keeps vLLM's process titles from overwriting the launcher id in /proc.

    Args:
        installation: The Triton server.
        launch: The launcher instance.
        base: Environment to extend.
    """
    environment = MALLOC | bytecode_folder() | dict(base)
    environment |= {
        "PATH": _joined(installation.python, base.get("PATH")),
        "PYTHONPATH": _joined(installation.imports, base.get("PYTHONPATH")),
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
        "SPT_NOENV": "1",
        LAUNCH_ID: launch.id,
        DRAIN_FILE: str(launch.drain_file),
        DEPARTURES_FILE: str(launch.departures_file),
    }
    if installation.library_path:
        environment["LD_LIBRARY_PATH"] = _joined(*installation.library_path, base.get("LD_LIBRARY_PATH"))
    return environment


def bytecode_folder() -> dict[str, str]:
    """Return a variable that redirects bytecode to the cache if the installation has none and is read-only.

    With bytecode vLLM starts 10 s faster.
    """
    if os.access(PACKAGE, os.W_OK) or (PACKAGE / "__pycache__").is_dir():
        return {}
    return {"PYTHONPYCACHEPREFIX": str(cache_folder() / "bytecode")}


def _joined(*parts: Path | str | None) -> str:
    return os.pathsep.join(str(part) for part in parts if part)
