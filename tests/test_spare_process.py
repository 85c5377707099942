"""The spare process forks programs that behave as if a new Python ran them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.launcher.processes import read_process
from stretto.machine.spare_process import ForkedProcess, fork, listen
from tests.patience import PATIENCE_S, until

PRELOADED = """
import os
imported_by = os.getpid()
"""
PROGRAM = """
import os, signal, sys, preloaded
word, *descriptors = sys.argv[1:]
print(word, os.environ["WORD"], "HOME" in os.environ, preloaded.imported_by == os.getppid(), __name__)
for number in descriptors:
    os.write(int(number), number.encode())
if word == "wait":
    signal.pause()
sys.exit({"fails": 3, "says": "a reason"}.get(word))
"""


class Spare:
    """A spare process, and the folder of its socket and programs."""

    def __init__(self, folder: Path) -> None:
        (folder / "preloaded.py").write_text(PRELOADED)
        (folder / "program.py").write_text(PROGRAM)
        self.path = folder / "socket"
        self.reading, self.writing = os.pipe()
        with listen(self.path) as listener:
            number = listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "stretto.machine.spare_process", "a_spare", str(number), "preloaded"],
                pass_fds=[number],
                env=os.environ | {"PYTHONPATH": str(folder)},
            )

    def run(
        self, *words: str, descriptors: dict[int, int] | None = None, dies_with_spare: bool = False
    ) -> ForkedProcess:
        streams = {1: self.writing, 2: self.writing} | (descriptors or {})
        forked = fork(self.path, "program", words, {"WORD": "given"}, streams, dies_with_spare)
        assert forked is not None
        return forked

    def output(self) -> str:
        return os.read(self.reading, 1 << 16).decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def spare(tmp_path: Path) -> Iterator[Spare]:
    made = Spare(tmp_path)
    yield made
    made.end()
    os.close(made.reading)
    os.close(made.writing)


@pytest.mark.parametrize(("word", "code"), [("ends", 0), ("fails", 3), ("says", 1)])
def test_program_gets_its_own_arguments_environment_and_exit_code(spare: Spare, word: str, code: int) -> None:
    forked = spare.run(word)
    assert forked.wait(PATIENCE_S) == code
    reason = "a reason\n" if word == "says" else ""
    assert spare.output() == f"{word} given False True __main__\n{reason}"
    assert spare.process.poll() is None


def test_descriptors_arrive_under_their_numbers_in_any_order(spare: Spare) -> None:
    pipes = [os.pipe() for _ in range(8)]
    writing = [end for _, end in pipes]
    numbers = range(3, 11)  # where the forked process has others open
    forked = spare.run("ends", *map(str, numbers), descriptors=dict(zip(numbers, reversed(writing), strict=True)))
    assert forked.wait(PATIENCE_S) == 0
    assert [os.read(end, 9) for end, _ in reversed(pipes)] == [b"%d" % number for number in numbers]
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_killed_program_leaves_the_spare_running(spare: Spare) -> None:
    first, second = spare.run("wait"), spare.run("wait")
    assert first.has_started(PATIENCE_S)
    assert second.has_started(PATIENCE_S)
    assert read_process(second.pid).name == "program"  # type: ignore[union-attr]
    os.kill(first.pid, signal.SIGKILL)
    second.terminate()
    assert first.wait(PATIENCE_S) == -signal.SIGKILL
    assert second.wait(PATIENCE_S) < 0
    assert spare.run("ends").wait(PATIENCE_S) == 0


def test_program_that_depends_on_the_spare_ends_with_it(spare: Spare) -> None:
    dependent, other = spare.run("wait", dies_with_spare=True), spare.run("wait")
    assert dependent.has_started(PATIENCE_S)
    assert other.has_started(PATIENCE_S)
    spare.end()
    assert dependent.wait(PATIENCE_S) < 0
    assert other.poll() is None
    other.kill()
    assert other.wait(PATIENCE_S) < 0
    assert fork(spare.path, "program", ["ends"]) is None


def test_program_killed_before_it_is_forked_never_runs(spare: Spare) -> None:
    os.kill(spare.process.pid, signal.SIGSTOP)
    abandoned, kept = spare.run("abandoned"), spare.run("ends")
    assert (abandoned.pid, abandoned.poll(), abandoned.has_started(0.0)) == (0, None, False)
    abandoned.kill()
    assert abandoned.wait(PATIENCE_S) == -signal.SIGKILL
    os.kill(spare.process.pid, signal.SIGCONT)
    assert kept.wait(PATIENCE_S) == 0
    assert spare.output() == "ends given False True __main__\n"


def test_ended_spare_is_noticed_by_those_who_wait_for_it(spare: Spare) -> None:
    os.kill(spare.process.pid, signal.SIGSTOP)
    waiting = spare.run("ends")
    spare.end()
    assert not waiting.has_started(PATIENCE_S)
    until(lambda: waiting.poll() is not None)
