"""Triton installation, its environment, and the launcher's folders and ports."""

import http.client
import ipaddress
import os
import pwd
import re
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stretto.disconnects import DISCONNECTS_FILE
from stretto.launcher.launch import LAUNCH_ID, Launch
from stretto.machine.worker_process import ENGINE_SPARE
from stretto.triton_io.stub import DRAIN_FILE, LARGE, LARGEST

PLAIN = re.compile(r"[A-Za-z0-9_./+@%=:,-]+")


def plain_path(path: Path, folder: Path, name: str) -> Path:
    """Return `path` if a shell parses it as one word of plain ASCII; otherwise return a new link to it."""
    if PLAIN.fullmatch(str(path)):
        return path
    link = folder / name
    link.symlink_to(path.absolute(), target_is_directory=True)
    return link


PACKAGE = Path(__file__).parents[1]
IMPORT_ROOT = PACKAGE.parent  # on sys.path for `import stretto`


def clone() -> Path | None:
    """Return the repository clone that contains this package, or None if the package is installed."""
    tree = IMPORT_ROOT.parent
    return tree if (tree / "pyproject.toml").is_file() and (tree / "model_repository").is_dir() else None


def bundled_repository() -> Path:
    """Return the bundled model repository: at the top of a clone, or inside an installed package."""
    return (clone() or PACKAGE) / "model_repository"


def state_folder() -> Path:
    """Return the folder of pid files and logs: `.stretto` in a clone, or the user's state folder.

    If the user has no home folder, and XDG_STATE_HOME names none, raise LaunchError.
    """
    tree = clone()
    return _user_folder("XDG_STATE_HOME", ".local/state") if tree is None else tree / ".stretto"


def cache_folder() -> Path:
    """Return the user's cache folder for this project; raise LaunchError if there is none.

    For a user without a home folder, it is `.stretto/cache` in the clone.
    """
    if clone() is not None and home_folder() is None and not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "")):
        return state_folder() / "cache"
    return _user_folder("XDG_CACHE_HOME", ".cache")


def _user_folder(variable: str, default: str) -> Path:
    """Return this project's folder in a folder of the XDG specification, by default below the user's home.

    As in the specification, a relative path in the variable is ignored.
    """
    named = os.environ.get(variable, "")
    home = home_folder()
    if os.path.isabs(named):
        return Path(named) / "stretto"
    if home is None:
        raise LaunchError(f"user {os.getuid()} has no home folder: set HOME or {variable} to the path of a folder")
    return home / default / "stretto"


def home_folder() -> Path | None:
    """Return HOME if it is an absolute path, otherwise the home folder in the user database, or None."""
    named = os.environ.get("HOME", "")
    try:
        home = named if os.path.isabs(named) else pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # for example, in a container that runs with an arbitrary user id
        return None
    return Path(home) if os.path.isabs(home) else None


CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")


class LaunchError(Exception):
    """The server cannot be started; the message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Triton server on this machine.

    Attributes:
        arguments: Flags that this installation needs.
        library_path: Folders of shared libraries, searched first.
        python: Folder of the Python interpreter whose packages the stubs use.
        imports: Folder from which the stubs import our package.
        version: Version of the server, such as (2, 75); None if it is unknown.
    """

    executable: Path
    arguments: tuple[str, ...] = ()
    library_path: tuple[Path, ...] = ()
    python: Path = Path(sys.executable).parent
    imports: Path = IMPORT_ROOT
    version: tuple[int, int] | None = None


def wait_for_ports(ports: dict[str, int], timeout_s: float = 2.0) -> None:
    """Wait until all ports are free; raise LaunchError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while taken := next(((name, port) for name, port in ports.items() if _is_taken(port)), None):
        if time.monotonic() > deadline:
            name, port = taken
            raise LaunchError(f"port {port} is in use: choose another with --{name}-port, or free the port")
        time.sleep(0.05)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ignore TIME_WAIT
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def reachable(address: str) -> str:
    """Return the host name or address at which this machine reaches a server on `address`."""
    return "localhost" if ipaddress.ip_address(address).is_unspecified else address


def page_address(address: str, port: int) -> str:
    """Return the URL of the gateway's web page for a browser on this machine."""
    host = reachable(address)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class UnixConnection(http.client.HTTPConnection):
    """HTTP connection over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float = 2.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


# Return larger blocks to the system when they are freed. Otherwise malloc keeps fragmented blocks of processed files,
# and Triton grows ("Large files of other clients" in benchmarks/results/robustness.md). Its 130 threads share two
# arenas instead of up to eight per core, each with its own fragmentation. See mallopt(3); stubs that compute set the
# first two themselves.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGE),
    "MALLOC_TRIM_THRESHOLD_": str(LARGE),
    "MALLOC_ARENA_MAX": "2",
}
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # checkpoints are local folders; only the user's environment allows requests to a hub
# Settings of `stub.keep_large_memory`, for processes that compute.
KEEP_LARGE = {"MALLOC_MMAP_THRESHOLD_": str(LARGEST), "MALLOC_TRIM_THRESHOLD_": str(2 * LARGEST)}


def server_environment(
    installation: Installation, launch: Launch, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment variables of the server.

    The stub derives the virtual environment from PATH, not PYTHONPATH, so the interpreter's folder is first there.
    SPT_NOENV keeps vLLM's process titles from overwriting the launcher id in /proc. vLLM puts its sockets into the
    runtime directory, so that the sockets of a killed engine are removed as well.
    """
    environment = MALLOC | OFFLINE | bytecode_folder() | dict(base)
    environment |= {
        "PATH": _joined(installation.python, base.get("PATH")),
        "PYTHONPATH": _joined(installation.imports, base.get("PYTHONPATH")),
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
        "SPT_NOENV": "1",
        LAUNCH_ID: launch.id,
        DRAIN_FILE: str(launch.drain_file),
        DISCONNECTS_FILE: str(launch.disconnects_file),
        "VLLM_RPC_BASE_PATH": str(launch.folder),
        ENGINE_SPARE: str(launch.spare_socket),
    }
    if home_folder() is None:  # libraries would write to a folder that is called `~`
        environment["HOME"] = str(launch.folder if clone() is None else state_folder())
    if installation.library_path:
        environment["LD_LIBRARY_PATH"] = _joined(*installation.library_path, base.get("LD_LIBRARY_PATH"))
    return environment


def bytecode_folder() -> dict[str, str]:
    """Return the environment variable that makes Python write bytecode to the cache folder, or nothing.

    It is needed if the installation is read-only and has no bytecode, without which a start takes 5 s longer.
    """
    if os.access(PACKAGE, os.W_OK) or (PACKAGE / "__pycache__").is_dir():
        return {}
    return {"PYTHONPYCACHEPREFIX": str(cache_folder() / "bytecode")}


def _joined(*parts: Path | str | None) -> str:
    return os.pathsep.join(str(path) for path in parts if path)
