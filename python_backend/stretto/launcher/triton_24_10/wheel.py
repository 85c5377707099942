"""The Triton server inside the wheel nvidia-pytriton, to which the stub for this Python version must be added."""

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from stretto.launcher.installation import CONTAINER_SERVER, Installation, LaunchError

STUB = "triton_python_backend_stub"


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
    renamed, so that concurrent launchers never see a partial one. Its name depends on the wheel and the Python version.
    If the wheel has no stub for this version, raise LaunchError.
    """
    version = ".".join(platform.python_version_tuple()[:2])
    stub = server / "python_backend_stubs" / version / STUB
    if not stub.exists():
        versions = sorted(path.name for path in stub.parents[1].iterdir())
        raise LaunchError(f"the wheel has no stub for Python {version}; it has {', '.join(versions)}")
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
    """
    folder_named = os.path.expanduser(os.environ.get("STRETTO_LIBPYTHON", ""))
    version = ".".join(platform.python_version_tuple()[:2])
    if folder_named and (Path(folder_named) / f"libpython{version}.so.1.0").exists():
        return Path(folder_named).absolute()
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
