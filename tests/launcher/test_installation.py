"""Search for a server, messages about missing parts, and the private, complete backend folder."""

import concurrent.futures
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from stretto.launcher import server_search
from stretto.launcher.installation import LaunchError
from stretto.launcher.server_search import find_installation, known_flags
from stretto.launcher.triton_24_10 import wheel as wheel_module
from stretto.launcher.triton_24_10.wheel import STUB, place_backend, python_library

VERSION = ".".join(platform.python_version_tuple()[:2])


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Return a folder `pytriton/tritonserver` as in the wheel, whose files are not executable."""
    site = tmp_path / "site-packages"
    server = site / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{VERSION}/{STUB}",
    ):
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_text(name)
    (site / "nvidia_pytriton.libs").mkdir()
    return server


def test_backend_folder_has_the_stub_for_this_python(wheel: Path, tmp_path: Path) -> None:
    backend = place_backend(wheel, tmp_path / "cache") / "python"
    assert (backend / STUB).read_text() == f"python_backend_stubs/{VERSION}/{STUB}"
    assert os.access(backend / STUB, os.X_OK)
    assert {path.name for path in backend.iterdir()} == {
        STUB,
        "libtriton_python.so",
        "triton_python_backend_utils.py",
    }
    # the wheel's run path of the libraries
    assert (backend / "../../../../nvidia_pytriton.libs").resolve() == wheel.parents[1] / "nvidia_pytriton.libs"


def test_wheel_is_not_modified(wheel: Path, tmp_path: Path) -> None:
    place_backend(wheel, tmp_path / "cache")
    assert not (wheel / "backends" / "python" / STUB).exists()
    assert not os.access(wheel / "python_backend_stubs" / VERSION / STUB, os.X_OK)


def test_concurrent_launchers_share_one_backend_folder(wheel: Path, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: place_backend(wheel, tmp_path / "cache"), range(8)))
    assert len(folders) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_different_wheel_is_placed_in_a_different_folder(wheel: Path, tmp_path: Path) -> None:
    first = place_backend(wheel, tmp_path / "cache")
    (wheel / "python_backend_stubs" / VERSION / STUB).write_text("a newer stub")
    assert place_backend(wheel, tmp_path / "cache") != first


def test_missing_python_stub_error_names_the_version(wheel: Path, tmp_path: Path) -> None:
    stubs = wheel / "python_backend_stubs"
    (stubs / VERSION).rename(stubs / "2.7")
    with pytest.raises(LaunchError, match=f"no stub for Python {VERSION}; it has 2.7"):
        place_backend(wheel, tmp_path / "cache")


HELP = r"Usage: tritonserver [options]\n  --help\n\tPrint usage\n\n  --backend-config <string>\n\tSee --model-store\n"
NEW_HELP = HELP + r"\nShared memory:\n  --allow-client-shm <boolean>\n\tDefault is false.\n"


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a container's server."""
    monkeypatch.setattr(server_search, "CONTAINER_SERVER", tmp_path / "tritonserver")
    return tmp_path / "tritonserver"


def write_server(executable: Path, text: str) -> None:
    """Write a server that prints this help text as tritonserver does: to standard error, with exit code 1."""
    executable.write_text(f"#!/bin/sh\nprintf '{text}' >&2\nexit 1\n")
    executable.chmod(0o755)


def test_container_installation_needs_no_extra_arguments(container: Path, tmp_path: Path) -> None:
    write_server(container, HELP)
    found = find_installation(tmp_path / "cache")
    assert (found.executable, found.arguments, found.library_path) == (container, (), ())
    assert known_flags(found) == {"--help", "--backend-config"}


def test_help_of_a_server_is_read_in_any_locale(container: Path, tmp_path: Path) -> None:
    """Bytes that are no text in the locale's encoding, which is ASCII here, or none at all."""
    write_server(container, HELP + r"\n  --t\303\274r <string>\377\n  --log-file <string>\n")
    program = (
        "from pathlib import Path; from stretto.launcher import server_search as module;"
        f"module.CONTAINER_SERVER = Path({str(container)!r});"
        f"print(*sorted(module.known_flags(module.find_installation(Path({str(tmp_path)!r})))))"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([b"--backend-config", b"--help", b"--log-file", b"--t"], b"")


def test_client_shared_memory_flag_is_passed_if_supported(container: Path, tmp_path: Path) -> None:
    """This applies to 26.05 and later; older servers do not start with the flag."""
    write_server(container, NEW_HELP)
    assert find_installation(tmp_path / "cache").arguments == ("--allow-client-shm=true",)


@pytest.mark.parametrize("text", ["error while loading shared libraries: libb64.so.0d", ""])
def test_tritonserver_that_cannot_run_is_reported(container: Path, tmp_path: Path, text: str) -> None:
    write_server(container, text)
    with pytest.raises(LaunchError, match=r"tritonserver --help: (error while loading|no output)"):
        find_installation(tmp_path / "cache")


def test_missing_server_error_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_search, "CONTAINER_SERVER", tmp_path / "none")
    monkeypatch.setattr(wheel_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"nvidia-pytriton .* install the extra .embedded. .*scripts/setup\.sh"):
        find_installation(tmp_path)


def test_wheel_server_is_made_executable(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module, "python_library", lambda: tmp_path)
    found = wheel_module.wheel_installation(wheel, tmp_path / "cache")
    assert os.access(found.executable, os.X_OK)
    assert found.library_path == (wheel.parents[1] / "nvidia_pytriton.libs", tmp_path)


def test_shared_library_of_this_python_is_found() -> None:
    assert (python_library() / sysconfig.get_config_var("INSTSONAME")).exists()


def test_libpython_of_matching_version_can_be_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_LIBPYTHON", str(tmp_path))
    (tmp_path / "libpython9.9.so.1.0").touch()
    assert python_library() != tmp_path
    (tmp_path / f"libpython{VERSION}.so.1.0").touch()
    assert python_library() == tmp_path


def test_missing_libpython_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module.sysconfig, "get_config_var", {"INSTSONAME": "libpython9.a"}.get)
    with pytest.raises(LaunchError, match=f"install libpython{VERSION}, or use a Python built with --enable-shared"):
        python_library()
