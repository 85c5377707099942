"""Triton installation (container or wheel), its environment, and the launcher's folders and ports."""

import hashlib
import http.client
import importlib.util
import ipaddress
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stretto.disconnects import DISCONNECTS_FILE
from stretto.launcher.faults import LAUNCH_ID, Launch
from stretto.triton_io.stub import DRAIN_FILE, LARGE, LARGEST
from stretto.worker_process import ENGINE_SPARE

PLAIN = re.compile(r"[A-Za-z0-9_./+@%=:,-]+")


def plain_path(path: Path, folder: Path, name: str) -> Path:
    """Return `path` if a shell reads it as one word of plain ASCII; otherwise return a new link to it.

    Args:
        path: Folder.
        folder: Folder of the link.
        name: Name of the link.
    """
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

    Raises:
        LaunchError: If this user has no home folder, and XDG_STATE_HOME names none.
    """
    tree = clone()
    return _user_folder("XDG_STATE_HOME", ".local/state") if tree is None else tree / ".stretto"


def cache_folder() -> Path:
    """Return the user's cache folder for this project; a user without a home folder has it in the clone's `.stretto`.

    Raises:
        LaunchError: If this user has no home folder, XDG_CACHE_HOME names none, and there is no clone.
    """
    if clone() is not None and home_folder() is None and not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "")):
        return state_folder() / "cache"
    return _user_folder("XDG_CACHE_HOME", ".cache")


def _user_folder(variable: str, default: str) -> Path:
    """Return this project's folder in a folder of the XDG specification, which ignores relative paths.

    Args:
        variable: Environment variable that may name the folder.
        default: The folder relative to the user's home.
    """
    named, home = os.environ.get(variable, ""), home_folder()
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
    except KeyError:  # as in a container that runs with an arbitrary user id
        return None
    return Path(home) if os.path.isabs(home) else None


CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
STUB = "triton_python_backend_stub"
# Flags that only newer servers accept; older ones refuse to start with them. Since 26.05 client shared memory is off by
# default. The proxy decides which clients may use it.
OPTIONAL_FLAGS = ("--allow-client-shm=true",)
HELP_S = 60.0
FLAG = re.compile(r"^\s*(--[a-z][a-z0-9-]*)", re.MULTILINE)


class LaunchError(Exception):
    """The server cannot be started; the message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Triton server on this machine.

    Attributes:
        executable: Path of tritonserver.
        arguments: Flags that this installation needs.
        library_path: Folders of shared libraries, searched first.
        python: Folder of the Python interpreter whose packages the stubs use.
        imports: Folder that the stubs import our package from.
    """

    executable: Path
    arguments: tuple[str, ...] = ()
    library_path: tuple[Path, ...] = ()
    python: Path = Path(sys.executable).parent
    imports: Path = IMPORT_ROOT


def find_installation(cache: Path) -> Installation:
    """Return the server of a Triton container or, if there is none, the one inside the nvidia-pytriton wheel.

    Args:
        cache: Folder for the modified copy of the wheel's Python backend.

    Raises:
        LaunchError: If no usable server was found.
    """
    found = Installation(CONTAINER_SERVER) if CONTAINER_SERVER.exists() else wheel_installation(wheel_server(), cache)
    known = known_flags(found)
    flags = tuple(flag for flag in OPTIONAL_FLAGS if flag.partition("=")[0] in known)
    return replace(found, arguments=found.arguments + flags)


def known_flags(installation: Installation) -> frozenset[str]:
    """Return the flags that `tritonserver --help` lists; raise LaunchError if it cannot run."""
    folders = [*map(str, installation.library_path), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}
    command = [str(installation.executable), "--help"]
    try:
        completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HELP_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{installation.executable} --help: {error}") from error
    known = frozenset(FLAG.findall(completed.stdout + completed.stderr))
    if not known:
        lines = (completed.stderr + completed.stdout).strip().splitlines() or ["no output"]
        raise LaunchError(f"{installation.executable} --help: {lines[0]}")
    return known


def wheel_server() -> Path:
    """Return the wheel's folder `pytriton/tritonserver`; raise LaunchError if there is no wheel."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise LaunchError(
            f"no Triton server: neither {CONTAINER_SERVER} nor the wheel nvidia-pytriton for {sys.executable}; "
            "install the extra 'embedded' (in a clone: scripts/setup.sh), or start inside a Triton container"
        )
    return Path(spec.origin).parent / "tritonserver"


def wheel_installation(server: Path, cache: Path) -> Installation:
    """Prepare the wheel's server: make it executable, and add the stub for this Python version."""
    executable = server / "bin" / "tritonserver"
    if not os.access(executable, os.X_OK):
        executable.chmod(0o755)  # wheels may lose the executable bit
    backends = place_backend(server, cache)
    arguments = (f"--backend-directory={backends}", f"--cache-directory={server / 'caches'}")
    return Installation(executable, arguments, (wheel_libraries(server), python_library()))


def wheel_libraries(server: Path) -> Path:
    """Return the folder of the wheel's shared libraries."""
    return server.parents[1] / "nvidia_pytriton.libs"


def place_backend(server: Path, cache: Path) -> Path:
    """Copy the wheel's Python backend, with the stub for this Python version, unless the cache has the copy already.

    Its libraries look for `nvidia_pytriton.libs` at a fixed depth, which the copy preserves. A finished copy is
    renamed, so that concurrent launchers never see a partial one; its name depends on the wheel and the Python version.

    Args:
        server: Folder of the wheel's server.
        cache: Folder of the copy.

    Returns:
        Backend folder for tritonserver.

    Raises:
        LaunchError: If the wheel has no stub for this Python version.
    """
    version = ".".join(platform.python_version_tuple()[:2])
    stub = server / "python_backend_stubs" / version / STUB
    if not stub.exists():
        known = sorted(path.name for path in stub.parents[1].iterdir())
        raise LaunchError(f"the wheel has no stub for Python {version}; it has {', '.join(known)}")
    state = stub.stat()
    name = hashlib.sha256(f"{stub} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache / f"backend-{version}-{name}"
    within = Path("site", "pytriton", "tritonserver", "backends")
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            build = Path(scratch, "backend")
            shutil.copytree(server / "backends" / "python", build / within / "python", ignore=_not_ours)
            shutil.copy(stub, build / within / "python" / STUB)
            (build / within / "python" / STUB).chmod(0o755)
            (build / "site" / "nvidia_pytriton.libs").symlink_to(wheel_libraries(server))
            try:
                build.rename(target)
            except OSError:
                if not target.exists():  # if it exists, another launcher created it first
                    raise
    return target / within


def _not_ours(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("__pycache__", STUB)]


def python_library() -> Path:
    """Return the folder of this Python's shared library, so that the stub does not load another Python.

    If this Python has no shared library, STRETTO_LIBPYTHON may name the folder with the library of another Python of
    the same version.

    Raises:
        LaunchError: If no shared library is found.
    """
    given = os.environ.get("STRETTO_LIBPYTHON")
    version = ".".join(platform.python_version_tuple()[:2])
    if given and (Path(given) / f"libpython{version}.so.1.0").exists():
        return Path(given)
    name = sysconfig.get_config_var("INSTSONAME") or ""
    configured = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (configured, configured / multiarch, Path(sys.base_prefix, "lib"))
    for folder in folders:
        if ".so" in name and (folder / name).exists():
            return folder
    raise LaunchError(
        f"no shared library of Python {version} in {', '.join(map(str, folders))}; Triton's Python backend needs it: "
        f"install libpython{version}, or use a Python built with --enable-shared"
    )


def wait_for_ports(ports: dict[str, int], timeout_s: float = 2.0) -> None:
    """Wait until all ports are free.

    Args:
        ports: Port of each protocol.
        timeout_s: Time limit in seconds.

    Raises:
        LaunchError: If a port is still in use after the time limit.
    """
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
        """Connect to the socket."""
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
# For processes that compute: the settings of `stub.keep_large_memory`.
OFFLINE = {
    "HF_HUB_OFFLINE": "1"
}  # checkpoints are local folders; only the user's environment allows questions to a hub
KEEP_LARGE = {"MALLOC_MMAP_THRESHOLD_": str(LARGEST), "MALLOC_TRIM_THRESHOLD_": str(2 * LARGEST)}


def server_environment(
    installation: Installation, launch: Launch, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment variables of the server.

    The interpreter's folder is first in PATH, because the stub derives the virtual environment from PATH, not
    PYTHONPATH. SPT_NOENV keeps vLLM's process titles from overwriting the launcher id in /proc. vLLM puts its sockets
    into the runtime directory, so that the sockets of a killed engine are removed as well.

    Args:
        installation: The Triton server.
        launch: Launcher instance.
        base: Environment to extend.
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
    """Return the environment variable that makes Python write bytecode to the cache folder.

    The variable is needed only if the installation is read-only and has no bytecode. vLLM starts 10 s faster with
    bytecode.
    """
    if os.access(PACKAGE, os.W_OK) or (PACKAGE / "__pycache__").is_dir():
        return {}
    return {"PYTHONPYCACHEPREFIX": str(cache_folder() / "bytecode")}


def _joined(*parts: Path | str | None) -> str:
    return os.pathsep.join(str(part) for part in parts if part)
