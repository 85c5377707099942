"""The alignment queue answers every job once and in time, even if its process ends at any moment."""

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stretto.aligning.align import TimedWord
from stretto.aligning.model import Aligner
from stretto.aligning.process import MAX_WAIT_S, AlignerProcess, AlignmentQueue, ProcessFailed
from stretto.aligning.worker import answer
from stretto.machine.worker_process import START_S, WorkerProcess
from tests.aligning.ctc_release import write_release
from tests.patience import PATIENCE_S

PCM = np.ones(8, np.int16)
WORDS = [TimedWord("a", 0.0, 0.1, 0.5)]


class ScriptedProcess:
    """Fake process that answers each text with a function and records its jobs."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self._answer, self.asked, self.calls = answer, list[str](), list[str]()

    def align(self, pcm: Any, rate: int, text: str) -> list[TimedWord] | None:
        self.asked.append(text)
        return self._answer(text)

    def kill(self) -> None:
        self.calls.append("kill")

    def close(self) -> None:
        self.calls.append("close")


class ManualTimers:
    """Timers that expire when a test requests it."""

    def __init__(self) -> None:
        self.expire: list[Callable[[], None]] = []
        self.cancelled = 0

    def __call__(self, seconds: float, expire: Callable[[], None]) -> "ManualTimers":
        assert seconds == 5.0
        self.expire.append(expire)
        return self

    def start(self) -> None:
        pass

    def cancel(self) -> None:
        self.cancelled += 1


class Answers:
    """Record of answers that a test can wait for."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, words: Any) -> None:
        with self._changed:
            self.got.append(words)
            self._changed.notify_all()

    def wait(self, number: int) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.got) >= number, PATIENCE_S)
            return list(self.got)


def test_alignment_jobs_complete_in_order_and_failures_yield_no_words() -> None:
    def answer(text: str) -> Any:
        match text:
            case "dies":
                raise ProcessFailed("killed")
            case "breaks":
                raise RuntimeError("a bug")
            case "unfit":
                return None
        return WORDS

    timers, answers = ManualTimers(), Answers()
    queue = AlignmentQueue(ScriptedProcess(answer), 5.0, timers)
    for text in ("a", "dies", "b", "breaks", "unfit", "c"):
        queue.submit([PCM], 16_000, text, answers)
    assert answers.wait(6) == [WORDS, None, WORDS, None, None, WORDS]
    assert timers.cancelled == 6
    queue.close()


def test_timed_out_alignment_is_answered_once_without_words() -> None:
    gate, begun = threading.Event(), threading.Event()

    def answer(text: str) -> Any:
        begun.set()
        assert gate.wait(PATIENCE_S)
        return WORDS

    process, timers, late, waiting, last = ScriptedProcess(answer), ManualTimers(), Answers(), Answers(), Answers()
    queue = AlignmentQueue(process, 5.0, timers)
    queue.submit([PCM], 16_000, "late", late)
    assert begun.wait(PATIENCE_S)
    pcm = np.ones(8, np.int16)
    held = weakref.ref(pcm)
    queue.submit([pcm], 16_000, "waiting", waiting)
    for expire in timers.expire:
        expire()
    assert (late.got, waiting.got) == ([None], [None])
    del pcm
    assert held() is None  # a job that is not computed keeps no samples
    queue.submit([PCM], 16_000, "last", last)
    gate.set()
    assert last.wait(1) == [WORDS]
    assert (late.got, waiting.got) == ([None], [None])
    assert process.asked == ["late", "last"]  # an expired job is not computed
    queue.close()


def test_shutdown_completes_running_waiting_and_later_jobs() -> None:
    gate, begun, answers = threading.Event(), threading.Event(), Answers()

    class Killed(ScriptedProcess):
        def kill(self) -> None:
            super().kill()
            gate.set()

    def answer(text: str) -> Any:
        begun.set()
        assert gate.wait(PATIENCE_S)
        raise ProcessFailed("killed")

    process = Killed(answer)
    queue = AlignmentQueue(process, 5.0, ManualTimers())
    for text in ("runs", "waits"):
        queue.submit([PCM], 16_000, text, answers)
    assert begun.wait(PATIENCE_S)
    queue.close()
    queue.submit([PCM], 16_000, "later", answers)
    assert answers.got == [None, None, None]
    assert (process.asked, process.calls) == (["runs"], ["kill", "close"])


def test_undeliverable_alignment_does_not_stop_the_queue() -> None:
    def broken(words: Any) -> None:
        raise OSError("the client is gone")

    answers = Answers()
    queue = AlignmentQueue(ScriptedProcess(lambda _: WORDS), 5.0, ManualTimers())
    queue.submit([PCM], 16_000, "a", broken)
    queue.submit([PCM], 16_000, "b", answers)
    assert answers.wait(1) == [WORDS]
    queue.close()


def test_aligner_process_results_match_in_process_results(tmp_path: Path) -> None:
    aligner = Aligner(write_release(tmp_path / "release"))
    pcm = (np.sin(np.arange(16_000) ** 1.4 / 200) * 9_000).astype(np.int16)
    memory = os.memfd_create("test")
    os.pwrite(memory, pcm.tobytes(), 0)
    job = {"num_samples": len(pcm), "rate": 16_000, "text": "The cat - sat."}
    expected = aligner.times(pcm.astype(np.float32) / 32_768, ["The", "cat", "sat."])
    assert answer(aligner, memory, job) == {"words": expected}
    assert len(answer(aligner, memory, job | {"rate": 8_000})["words"]) == 3  # resampled
    assert answer(aligner, memory, job | {"num_samples": 16_001}) == {"failed": "fewer samples than announced"}
    assert "expected at least" in answer(aligner, memory, job | {"text": "sit " * 30})["unfit"]
    assert "at least one label" in answer(aligner, memory, job | {"text": "..."})["unfit"]
    assert answer(aligner, memory, job | {"rate": -1})["failed"].startswith("ValueError: ")
    os.close(memory)


# In the place of Python with the worker's program: answers with the number and the sum of the samples.
PROGRAM = """#!{python}
import array, json, os, signal, sys
for line in sys.stdin:
    job = json.loads(line)
    if job["text"] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    samples = array.array("h", os.pread(int(sys.argv[6]), 2 * job["num_samples"], 0))
    words = [[job["text"], len(samples), sum(samples), 1.0]]
    print(json.dumps({{job["text"]: "why"}} if job["text"] in ("unfit", "failed") else {{"words": words}}), flush=True)
"""


def test_killed_aligner_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr("stretto.machine.worker_process.sys", SimpleNamespace(executable=str(program)))
    waits = list[float]()

    wait_for_answer = WorkerProcess._wait_for_answer

    def waited(process: WorkerProcess, until_s: float, is_cancelled: Callable[[], bool]) -> bool:
        waits.append(until_s)
        return wait_for_answer(process, until_s, is_cancelled)

    monkeypatch.setattr(WorkerProcess, "_wait_for_answer", waited)
    monkeypatch.setattr("stretto.machine.worker_process.time", SimpleNamespace(monotonic=lambda: 0.0))
    process, parts = AlignerProcess(tmp_path), [np.array([1, 2], np.int16), np.array([3], np.int16)]
    try:
        first = process.pid
        assert process.align(parts, 16_000, "a") == [TimedWord("a", 3, 6, 1.0)]
        assert process.align(parts, 16_000, "unfit") is None
        with pytest.raises(ProcessFailed, match="an alignment failed: why"):
            process.align(parts, 16_000, "failed")
        assert process.pid == first
        with pytest.raises(ProcessFailed):
            process.align(parts, 16_000, "dies")
        assert process.align(parts[:1], 16_000, "b") == [TimedWord("b", 2, 3, 1.0)]
        assert process.pid != first
        os.kill(process.pid, signal.SIGKILL)  # between two jobs
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.align(parts, 16_000, "c") == [TimedWord("c", 3, 6, 1.0)]
        one, first_of_its_process = MAX_WAIT_S, MAX_WAIT_S + START_S  # a, unfit, failed, dies | b | c
        assert waits == [first_of_its_process, one, one, one, first_of_its_process, first_of_its_process]
        process.kill()
        with pytest.raises(ProcessFailed, match="was ended"):
            process.align(parts, 16_000, "d")
    finally:
        process.close()


@pytest.mark.nightly
def test_aligner_process_matches_in_process_alignment(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "release")
    pcm = (np.sin(np.arange(16_000) ** 1.4 / 200) * 9_000).astype(np.int16)
    process = AlignerProcess(folder)
    try:
        found = process.align([pcm[:5_000], pcm[5_000:]], 16_000, "The cat - sat.")
        assert found == Aligner(folder).times(pcm.astype(np.float32) / 32_768, ["The", "cat", "sat."])
    finally:
        process.close()
