"""Search for a Triton server on this machine, and for its features."""

import os
import re
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.launcher.installation import CONTAINER_SERVER, Installation, LaunchError

# Flags that only newer servers accept; older ones refuse to start with them. Since 26.05 client shared memory is off by
# default. The proxy decides which clients may use it.
OPTIONAL_FLAGS = ("--allow-client-shm=true",)
HELP_S = 60.0
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}  # independent of the locale
FLAG = re.compile(r"^\s*(--[a-z][a-z0-9-]*)", re.MULTILINE)
VERSION = re.compile(r"(\d+)\.(\d+)\.")
VERSION_FILE = "TRITON_VERSION"  # in the folder of an installed server


def find_installation(cache: Path) -> Installation:
    """Return the server of a Triton container or, if there is none, of the nvidia-pytriton wheel."""
    if CONTAINER_SERVER.exists():
        installation = Installation(CONTAINER_SERVER)
    else:
        from stretto.launcher.triton_24_10.wheel import wheel_installation, wheel_server

        installation = wheel_installation(wheel_server(), cache)
    supported = known_flags(installation)
    flags = tuple(flag for flag in OPTIONAL_FLAGS if flag.partition("=")[0] in supported)
    return replace(
        installation, arguments=installation.arguments + flags, version=server_version(installation.executable)
    )


def server_version(executable: Path) -> tuple[int, int] | None:
    """Return the version, such as (2, 75), of an installed server `…/bin/tritonserver`; None if it is unknown."""
    with suppress(OSError, UnicodeDecodeError):
        match = VERSION.match((executable.parents[1] / VERSION_FILE).read_text())
        return None if match is None else (int(match[1]), int(match[2]))
    return None


def known_flags(installation: Installation) -> frozenset[str]:
    """Return the flags that `tritonserver --help` lists; raise LaunchError if it cannot run."""
    folders = [*map(str, installation.library_path), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}
    command = [str(installation.executable), "--help"]
    try:
        completed = subprocess.run(command, env=environment, capture_output=True, timeout=HELP_S, **TEXT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{installation.executable} --help: {error}") from error
    flags = frozenset(FLAG.findall(completed.stdout + completed.stderr))
    if not flags:
        lines = (completed.stderr + completed.stdout).strip().splitlines() or ["no output"]
        raise LaunchError(f"{installation.executable} --help: {lines[0]}")
    return flags
