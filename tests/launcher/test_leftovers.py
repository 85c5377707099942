"""Leftovers of dead processes are removed; those of running processes stay."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.launcher.launch import LAUNCH_ID, begin_launch, sweep
from stretto.launcher.processes import read_process
from tests.patience import PATIENCE_S, until


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a folder whose path is short enough for a Unix socket, which allows 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def orphan(launch_id: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        env=os.environ | {LAUNCH_ID: launch_id},
        stdout=subprocess.PIPE,
    )
    process.stdout.read(1)
    return process


def launch_and_wait(directory: Path, ids: "multiprocessing.Queue[str]") -> None:
    launch = begin_launch(directory)
    (directory / f"{launch.region_prefix}region").touch()
    ids.put(launch.id)
    signal.pause()


def test_sweep_removes_only_dead_launcher_instances(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ids = context.Queue()
    launcher = context.Process(target=launch_and_wait, args=(tmp_path, ids))
    launcher.start()
    launch_id = ids.get(timeout=PATIENCE_S)
    left = orphan(launch_id)
    assert sweep(tmp_path) == []
    assert left.poll() is None
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.join()
    assert sweep(tmp_path) == [launch_id]
    assert left.wait(PATIENCE_S) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_cleaning_removes_only_its_own_processes_and_files(short_path: Path) -> None:
    launch, other = begin_launch(short_path), begin_launch(short_path)
    ours, theirs = orphan(launch.id), orphan(other.id)
    for each in (launch, other):
        (short_path / f"{each.region_prefix}region").touch()
    launch.drain_file.touch()
    (launch.folder / "key-8001").touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(launch.http_socket))
    launch.clean()
    assert ours.wait(PATIENCE_S) == -signal.SIGKILL
    assert theirs.poll() is None
    kept = sorted(path.name for path in launch.folder.iterdir())
    assert kept == ["disconnects", "draining", "key-8001", "work"], (
        "what this launcher alone can make stays, the sockets go"
    )
    assert launch.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in short_path.iterdir()} - {launch.folder.name, other.folder.name} == {
        f"stretto_launch_{launch.id}.lock",
        f"stretto_launch_{other.id}.lock",
        f"{other.region_prefix}region",
    }
    launch.close()
    other.close()
    assert theirs.wait(PATIENCE_S) == -signal.SIGKILL
    assert list(short_path.iterdir()) == []


def test_zombie_process_counts_as_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: read_process(process.pid) is None)
    process.wait()


def test_foreign_files_with_launcher_names_do_not_stop_cleanup(short_path: Path) -> None:
    launch = begin_launch(short_path)
    (short_path / f"{launch.region_prefix}region").touch()
    for name in (f"{launch.region_prefix}forged", "stretto_launch_1_00000000.lock", "stretto_flow_1_forged"):
        (short_path / name).mkdir()
    assert sweep(short_path) == []
    launch.close()
    left = {"stretto_launch_1_00000000.lock", "stretto_flow_1_forged", f"{launch.region_prefix}forged"}
    assert {path.name for path in short_path.iterdir()} == left


def test_sweep_ignores_lock_names_with_wildcards(short_path: Path) -> None:
    launch = begin_launch(short_path)
    region = short_path / f"{launch.region_prefix}region"
    region.touch()
    (short_path / "stretto_launch_*.lock").touch()
    assert sweep(short_path) == []
    assert region.exists()
    launch.close()


def test_drain_file_is_in_a_private_folder(short_path: Path) -> None:
    launch = begin_launch(short_path)
    assert launch.drain_file.parent == launch.folder
    assert launch.folder.stat().st_mode & 0o777 == 0o700
    launch.close()


def test_hiding_regions_does_not_follow_links(short_path: Path) -> None:
    launch = begin_launch(short_path)
    region, own = short_path / f"{launch.region_prefix}region", short_path / "own"
    for path in (region, own):
        path.touch()
        path.chmod(0o644)
    (short_path / f"{launch.region_prefix}link").symlink_to(own)
    launch.hide_regions()
    assert [path.stat().st_mode & 0o777 for path in (region, own)] == [0o600, 0o644]
    launch.close()


NOBODY = 65_534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_hiding_regions_leaves_other_users_files_unchanged(
    short_path: Path,
) -> None:
    launch = begin_launch(short_path)
    region, theirs = (short_path / f"{launch.region_prefix}{name}" for name in ("region", "theirs"))
    for path in (short_path, region, theirs):
        if path is not short_path:
            path.write_bytes(b"speech")
        path.chmod(0o755)
    os.chown(theirs, NOBODY, NOBODY)

    def read_by_another(path: Path) -> bytes:
        return subprocess.run(["cat", path], user=NOBODY, group=NOBODY, extra_groups=(), capture_output=True).stdout

    assert read_by_another(region) == b"speech"
    launch.hide_regions()
    assert read_by_another(region) == b""
    assert theirs.stat().st_mode & 0o777 == 0o755
    assert launch.folder.stat().st_mode & 0o777 == 0o700
    launch.close()
