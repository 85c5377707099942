"""NVIDIA's Multi-Process Service (MPS), which lets the server's processes run on a GPU concurrently."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from stretto.launcher.installation import LaunchError
from stretto.launcher.launch import LAUNCH_ID, Launch
from stretto.launcher.launch_log import log_line
from stretto.launcher.options import OPTIONS_FILE, SHARES_BY_MPS, read_options
from stretto.launcher.shares import VISIBLE

PROGRAM = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
START_S = 60.0
QUIT_S = 10.0


def start(repository: Path, launch: Launch) -> None:
    """Start the MPS daemon of a launcher instance if the model repository requests one.

    If CUDA_MPS_PIPE_DIRECTORY names the folder of a running daemon (such as the host's), that daemon is used instead.
    If the variable names no folder, or this launcher's daemon cannot be started, raise LaunchError.
    """
    if not read_options(repository).shares_by_mps:
        return
    pipes = os.environ.get(PIPES)
    if pipes:
        if not Path(pipes).is_dir():
            raise LaunchError(f"{PIPES}: expected the folder of a running MPS daemon, got {pipes!r}")
        return
    program = shutil.which(PROGRAM)
    if program is None:
        raise LaunchError(
            f"{repository / OPTIONS_FILE}: {SHARES_BY_MPS}: expected the program {PROGRAM} of NVIDIA's driver in PATH, "
            "got none"
        )
    stop(launch)
    _folder(launch).mkdir()
    output = _folder(launch) / "start.log"
    try:
        with output.open("wb") as file:  # not a pipe, which the daemon could keep open
            subprocess.run(
                [program, "-d"],
                env=_daemon_environment(launch),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=START_S,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        printed = output.read_text(errors="replace").strip()[:500] if output.exists() else ""
        raise LaunchError(f"{PROGRAM} -d: {printed or error}") from None
    log_line(f"started {PROGRAM}; its log: {_folder(launch)}")


def stop(launch: Launch) -> None:
    """Ask the daemon of a launcher instance to exit; `Launch.clean` kills its remaining processes."""
    program = shutil.which(PROGRAM)
    if program is not None and _folder(launch).is_dir():
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [program],
                input=b"quit\n",
                env=_daemon_environment(launch),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=QUIT_S,
                check=False,
            )
    shutil.rmtree(_folder(launch), ignore_errors=True)


def client_environment(launch: Launch) -> dict[str, str]:
    """Return the environment variables with which processes find the launcher's own daemon; empty if it has none."""
    folder = _folder(launch)
    return {PIPES: str(folder), LOGS: str(folder)} if folder.is_dir() else {}


def _folder(launch: Launch) -> Path:
    return launch.folder / "mps"


def _daemon_environment(launch: Launch) -> dict[str, str]:
    """Return the daemon's variables, for all GPUs, because its clients number only the GPUs that it serves."""
    kept = {name: value for name, value in os.environ.items() if name != VISIBLE}
    return kept | client_environment(launch) | {LAUNCH_ID: launch.id}
