"""Folders on a read-only file system, which binds root, too, as permissions do not."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

MOUNT = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def read_only(folder: Path, *command: str) -> list[str]:
    """Return a command line that runs `command` with `folder` on a read-only mount of its own."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", str(folder), *command]


@cache
def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(read_only(Path("/tmp"), "true"), check=False, capture_output=True).returncode == 0


def run_read_only(folder: Path, code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code with `folder` on a read-only mount; skip the test if the system permits no mount.

    Args:
        folder: Folder that cannot be written.
        code: The code.
        *words: Arguments of the code (`sys.argv[1:]`).
    """
    if not _can_mount():
        pytest.skip("the system permits no mounts in a namespace of the test's own")
    command = read_only(folder, sys.executable, "-c", code, *words)
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1])
