"""Jobs in a child process."""

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from stretto.releases.jobs import JobProcess
from stretto.releases.messages import DoesNotFit, ReleaseError

MODULE = """
print("a library prints at its import", flush=True)
import mmap, os, signal, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from stretto.errors import CheckpointError
from stretto.releases.messages import DoesNotFit
from stretto.releases.jobs import serve

def echo(report, value):
    print("a library prints")
    return value

def count(report, times):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: report(1), range(times)))
    return times

def fail(report, kind):
    if kind == "size":
        raise DoesNotFit("too\\nlarge")
    if kind == "file":
        raise CheckpointError("no file")
    if kind == "mapped":
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            pages = mmap.mmap(file.fileno(), 0)
            file.truncate(0)
            pages[0]
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def ask(report, limits):
    import resource
    from stretto.releases import fetch
    with fetch.bounded_work():
        pass
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY
    vars(fetch).update(limits)
    with fetch.bounded_work():
        while True:
            pass

serve({"ask": ask, "echo": echo, "count": count, "fail": fail, "modules": lambda report: sorted(sys.modules)})
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobProcess]:
    (tmp_path / "own_jobs.py").write_text(textwrap.dedent(MODULE))
    with JobProcess("own_jobs", {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}) as worker:
        yield worker


def test_result_and_progress(worker: JobProcess) -> None:
    assert worker.call("echo", value={"a": ["\u2028\n"]}) == {"a": ["\u2028\n"]}
    done: list[int] = []
    assert worker.call("count", done.append, times=5000) == 5000
    assert sum(done) == 5000


def test_errors(worker: JobProcess) -> None:
    for kind, status, message in (("size", DoesNotFit.status, "too large"), ("file", 1, "no file")):
        with pytest.raises(ReleaseError) as caught:
            worker.call("fail", kind=kind)
        assert (caught.value.status, str(caught.value)) == (status, message)
    assert worker.call("echo", value=1) == 1, "the child goes on after an error"
    for _ in range(2):
        with pytest.raises(ReleaseError, match=f"the process ended with status {-signal.SIGKILL}: .*last words$"):
            worker.call("fail", kind="kill")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"WORK_S": 1}, "the answer needs more processor time than a release may take"),
        ({"QUESTION_S": 1}, "the answer took too long"),
    ],
)
def test_time_of_a_question_is_bounded(worker: JobProcess, limits: dict[str, int], message: str) -> None:
    assert worker.call("echo", value=1) == 1
    with pytest.raises(ReleaseError, match=f"^ask: {message}$"):
        worker.call("ask", limits=limits)


def test_full_disk_of_a_mapped_file_is_reported(worker: JobProcess) -> None:
    with pytest.raises(DoesNotFit, match=r"^fail: the disk of the models or of the hub's cache is full, or a file on"):
        worker.call("fail", kind="mapped")


def test_closed_worker_has_ended(worker: JobProcess) -> None:
    worker.call("echo", value=1)
    pid = worker._process.pid
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
