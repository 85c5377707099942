"""The environment that the server and its stubs start in."""

import os
from collections.abc import Mapping
from pathlib import Path

from stretto.departures import DEPARTURES_FILE
from stretto.serving.folders import PACKAGE, cache_folder
from stretto.serving.installation import Installation
from stretto.serving.leftovers import LAUNCH_ID, Launch
from stretto.triton_io.draining import DRAIN_FILE
from stretto.triton_io.stub import LARGE

# malloc returns larger blocks to the system as they are freed. Otherwise it keeps those of files that came and went, in
# pieces between which others lie, and Triton grows ("Large files of others" in benchmarks/README.md). And its 130
# threads have two heaps together, not up to eight for each core, each with pieces of its own. mallopt(3); stubs that
# compute set the first two for themselves.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGE),
    "MALLOC_TRIM_THRESHOLD_": str(LARGE),
    "MALLOC_ARENA_MAX": "2",
}


def server_environment(
    installation: Installation, launch: Launch, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """`base` with what the stubs need: this Python and its library first, our package, a UTF-8 locale.

    The folder of the interpreter leads PATH because that, and not PYTHONPATH, tells the stub which virtual
    environment is meant. SPT_NOENV keeps vLLM's process titles from overwriting the launch id in /proc.
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
    """Where bytecode goes when an installation has none and may not be written: with it vLLM starts 10 s sooner."""
    if os.access(PACKAGE, os.W_OK) or (PACKAGE / "__pycache__").is_dir():
        return {}
    return {"PYTHONPYCACHEPREFIX": str(cache_folder() / "bytecode")}


def _joined(*parts: Path | str | None) -> str:
    return os.pathsep.join(str(part) for part in parts if part)
