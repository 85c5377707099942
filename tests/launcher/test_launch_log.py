"""The launcher's log: problems with its file never affect the processes that write to it."""

import errno
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.launcher import launch_log
from stretto.launcher.launch_log import LaunchLog, LogFile
from stretto.launcher.server import last_error
from tests.patience import PATIENCE_S, until, written


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LaunchLog]:
    made = LaunchLog(tmp_path / "log")
    yield made
    made.close()


def run(log: LaunchLog, program: str) -> str:
    """Run a program until it ends; return its output as the log records it."""
    process, output = log.start([sys.executable, "-c", program])
    assert process.wait(PATIENCE_S) == 0
    said = output.tail()
    output.close()
    return said


def test_log_lines_of_several_processes_are_not_interleaved(log: LaunchLog, tmp_path: Path) -> None:
    program = "for number in range(50): print('{0}' * 9, end='', flush=True); print('{0}', flush=True)"
    started = [log.start([sys.executable, "-c", program.format(name)])[0] for name in "ab"]
    assert [process.wait(PATIENCE_S) for process in started] == [0, 0]
    until(lambda: written(tmp_path / "log").count("\n") == 100)
    assert set((tmp_path / "log").read_text().split()) == {"a" * 10, "b" * 10}


def test_unterminated_last_line_is_logged(log: LaunchLog, tmp_path: Path) -> None:
    assert run(log, "print('no end', end='')") == "no end"
    assert run(log, "print('next')") == "next\n"
    assert (tmp_path / "log").read_text() == "no end\nnext\n"


def test_log_lines_dropped_on_a_full_disk_are_counted(
    log: LaunchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, room = os.write, [5]

    def write_while_there_is_room(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as full:
        full.setattr(launch_log.os, "write", write_while_there_is_room)
        assert run(log, "for number in range(1000): print('line', number, flush=True)").count("\n") == 1000
    assert (
        "log cannot be written, and lines are dropped until it can: No space left on device" in capsys.readouterr().err
    )
    run(log, "print('there is room')")
    said = (tmp_path / "log").read_text().splitlines()
    assert said[0] == "line "
    assert said[2:] == ["there is room"]
    dropped = int(said[1].removeprefix("[serve] ").removesuffix(" lines of this log were dropped before this one"))
    assert dropped == 1000


def test_unopenable_log_is_retried(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"")
    log = LogFile(tmp_path / "folder" / "log")
    log.write(b"lost\n")
    (tmp_path / "folder").unlink()
    (tmp_path / "folder").mkdir()
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "folder" / "log").read_text().splitlines()[1:] == ["kept"]


def test_log_fifo_without_a_reader_only_drops_lines(tmp_path: Path) -> None:
    """Another user may create one in a folder that both can write to, after the log was rotated."""
    os.mkfifo(tmp_path / "log")
    program = f"""
from pathlib import Path
from stretto.launcher.launch_log import LogFile
log = LogFile(Path({str(tmp_path / "log")!r}))
log.write(b"lost")
print("waits for a reader", flush=True)
input()
log.write(b"kept")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        try:
            assert select.select([writer.stdout], [], [], PATIENCE_S)[0]
            assert writer.stdout.readline() == "waits for a reader\n"
            reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
            writer.communicate("\n")
            assert os.read(reader, 1000).splitlines()[1:] == [b"kept"]
            os.close(reader)
        finally:
            writer.kill()


def test_log_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_log, "LOG_BYTES", 10)
    log = LogFile(tmp_path / "log")
    for number in range(9):
        log.write(f"line {number}\n".encode())
    log.close()
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"log": "line 8\n"} | {f"log.{number}": f"line {8 - number}\n" for number in (1, 2, 3, 4)}


def test_unrotatable_log_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_log, "LOG_BYTES", 10)
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "not empty").touch()
    log = LogFile(tmp_path / "log")
    for number in range(5):
        log.write(f"line {number}\n".encode())
    log.close()
    assert (tmp_path / "log").read_text() == "line 4\n"


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_removed_log_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(launch_log, "LOG_BYTES", 10)
    log = LogFile(tmp_path / "log")
    log.write(b"first\n")
    if how == "moved":
        (tmp_path / "log").rename(tmp_path / "theirs")
    else:
        (tmp_path / "log").unlink()
    log.write(b"second\n")
    log.close()
    assert (tmp_path / "log").read_text() == "second\n"
    assert how == "removed" or (tmp_path / "theirs").read_text() == "first\n"


@pytest.mark.parametrize("how", ["rotated", "removed"])
def test_symlink_replacing_the_log_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(tmp_path / "theirs")

    (tmp_path / "theirs").write_text("theirs\n")
    (tmp_path / "chosen").symlink_to(tmp_path / "log")  # the user's own link is followed at first
    monkeypatch.setattr(launch_log, "LOG_BYTES", 10)
    monkeypatch.setattr(launch_log, "rotate", link)
    log = LogFile(tmp_path / "chosen")
    log.write(b"first\n")
    assert (tmp_path / "log").read_text() == "first\n"
    if how == "removed":
        (tmp_path / "log").unlink()
        link(tmp_path / "chosen")
    log.write(b"second\n")
    assert (tmp_path / "theirs").read_text() == "theirs\n"
    (tmp_path / "chosen").unlink()
    log.write(b"third\n")
    log.close()
    lines = (tmp_path / "chosen").read_text().splitlines()
    assert lines == ["[serve] 1 lines of this log were dropped before this one", "third"]


def test_blocked_stdout_reader_does_not_block_child_processes(tmp_path: Path) -> None:
    program = f"""
import sys
from stretto.launcher import launch_log
launch_log.WRITABLE_S = 0.01
log = launch_log.LaunchLog(None)
process, _ = log.start([sys.executable, "-c", "print('x' * {1 << 22})"])
assert process.wait() == 0
print("has ended", file=sys.stderr)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        assert launcher.stderr is not None
        lines = [launcher.stderr.readline(), launcher.stderr.readline()]
        launcher.kill()
    assert b"has ended\n" in lines


def test_failed_start_reason_is_never_a_routine_warning() -> None:
    always = 'W1122 20:04:53.069365 25315 metrics.cc:798] "DCGM unable to start: DCGM initialization error"'
    assert last_error(f"E1122 the cause is an error\n{always}\n") == "E1122 the cause is an error"
    assert last_error(f"{always}\n") == "no error message"


def test_abort_reason_comes_from_the_server_not_its_stubs() -> None:
    stub = "Fatal Python error: PyThreadState_Get: the function must be called with the GIL held"
    assert last_error(f"terminate called\n  what():  lock_exception\n{stub}\n") == "what():  lock_exception"
