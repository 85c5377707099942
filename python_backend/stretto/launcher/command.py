"""Command `stretto serve`: starts the Triton server with this project's model repository.

    stretto serve [--model-repository FOLDER] [tritonserver flags]
    stretto serve --status
    stretto serve --stop

It uses the server of a Triton container, or else the one inside the nvidia-pytriton wheel.
"""

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stretto.launcher import background
from stretto.launcher.config import LaunchConfig, launch_config, parser, pid_file_of
from stretto.launcher.installation import Installation, LaunchError, plain_path
from stretto.launcher.launch import SHARED_MEMORY, Launch, begin_launch, sweep
from stretto.launcher.launch_log import log_line
from stretto.launcher.server_search import find_installation
from stretto.launcher.shares import take
from stretto.launcher.supervisor import Supervisor, Waits

ENVIRONMENTS = Path("/tmp")  # the Python backend makes python_env_… there, whatever TMPDIR is


def main(arguments: list[str]) -> int:
    """Run `stretto serve` and return its exit code."""
    try:
        flag_parser = parser()
        flags, passed = flag_parser.parse_known_args(arguments)
        if passed and not passed[0].startswith("-"):
            flag_parser.error(f"unknown argument {passed[0]!r}")
        if flags.status or flags.stop:
            if passed:
                flag_parser.error(f"unknown flag {passed[0]!r} together with --status or --stop")
            path = pid_file_of(flags)
            return status(path) if flags.status else stop(path)
        return serve(launch_config(flags, passed))
    except LaunchError as error:
        log_line(str(error))
        return 1


def serve(config: LaunchConfig) -> int:
    """Run the launcher until a signal stops it, and return its exit code."""
    if not config.model_repository.is_dir():
        raise LaunchError(f"--model-repository: there is no folder {config.model_repository}")
    if not any(config.model_repository.glob("*/config.pbtxt")):
        raise LaunchError(f"--model-repository: no folder in {config.model_repository} contains a config.pbtxt")
    check_environments_folder(ENVIRONMENTS)
    try:
        claim_files(config)
    except OSError as error:
        raise cannot_write(error, config, "other files with --pid-file and --log-file") from None
    for launch_id in sweep():
        log_line(f"cleaned up after launcher instance {launch_id}, which had died")
    if config.shares:
        take(config.shares[0])
    waits = Waits()
    waits.catch_signals()
    background.end_with_starter()
    try:
        launch = begin_launch()
    except OSError as error:
        background.remove(config.pid_file)
        reason = f"cannot write {SHARED_MEMORY} ({error.strerror}), which the server needs for shared memory"
        raise LaunchError(f"{reason}: mount a tmpfs there, in a container with --shm-size or --ipc=host") from None
    try:
        with suppress(OSError):  # without the link, `stretto ps` does not find this launcher; nothing else fails
            launch.pid_file_link.symlink_to(config.pid_file.absolute())
        return Supervisor(*with_plain_paths(config, launch), launch, waits).run()
    finally:
        background.remove(config.pid_file)
        launch.close()


def check_environments_folder(folder: Path) -> None:
    """Raise LaunchError if Triton's Python backend cannot create its folder, because every start would fail."""
    try:
        os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        reason = f"cannot write {folder} ({error.strerror}), which Triton's Python backend needs whatever TMPDIR is"
        raise LaunchError(f"{reason}: mount a tmpfs there, in a container with --tmpfs {folder}") from None


def with_plain_paths(config: LaunchConfig, launch: Launch) -> tuple[LaunchConfig, Installation]:
    """Return config and installation with links instead of paths that Triton does not accept, or raise LaunchError."""
    try:
        config.cache.mkdir(parents=True, exist_ok=True)
        installation = find_installation(plain_path(config.cache, launch.folder, "cache"))
    except OSError as error:
        raise cannot_write(error, config, "another folder with --cache") from None
    repository = plain_path(config.model_repository, launch.folder, "models")
    installation = replace(
        installation,
        python=plain_path(installation.python.parent, launch.folder, "python") / installation.python.name,
        imports=plain_path(installation.imports, launch.folder, "imports"),
    )
    return replace(config, model_repository=repository), installation


def cannot_write(error: OSError, config: LaunchConfig, choice: str) -> LaunchError:
    """Return the error for a path that cannot be written: the file that `error` names, or else the cache folder."""
    return LaunchError(f"cannot write {error.filename or config.cache} ({error.strerror or error}): choose {choice}")


def claim_files(config: LaunchConfig) -> None:
    """Create the log and the pid file; raise LaunchError if the pid file belongs to a running launcher."""
    running = background.read(config.pid_file)
    if running is not None and running["pid"] != os.getpid():
        pid = running["pid"]
        raise LaunchError(f"{config.pid_file}: a launcher is running (pid {pid}); stop it with stretto serve --stop")
    if config.log_file is not None:
        config.log_file.parent.mkdir(parents=True, exist_ok=True)
        config.log_file.write_bytes(b"")
    log = str(config.log_file)
    background.write(
        config.pid_file, "starting", config.ports, log, stop_seconds=config.stop_seconds, model=config.model
    )


def status(path: Path) -> int:
    """Print the launcher's state as JSON; return 0 if ready or asleep, 3 if no launcher is running, else 1."""
    record = background.read(path)
    print(json.dumps(record or {"state": "stopped"}))
    return 3 if record is None else int(record["state"] not in ("ready", "asleep"))


def stop(path: Path) -> int:
    """Drain and stop the launcher, and return 0; raise LaunchError if it takes too long."""
    try:
        log_line("stopped" if background.stop(path) else "no server was running")
    except TimeoutError as error:
        raise LaunchError(str(error)) from None
    return 0
