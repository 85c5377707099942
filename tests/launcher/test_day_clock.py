"""Steps of the wall clock are distinguished from elapsed time, and durations do not depend on it."""

import ast
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from stretto.launcher.triton_24_10 import clock as clock_module
from stretto.launcher.triton_24_10.clock import ClockWatch
from tests.sources import parsed, walk

ROOT = Path(__file__).parents[2]
FOLDERS = ("python_backend", "gateway", "contract", "client", "deploy", "model_repository", "examples", "plugins")
DAY_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
# Every use of the wall clock in the product, by file: how many, and why a step of the clock does no harm there.
USES = {
    "client.py": (1, "vLLM's arrival time, which only its log shows"),
    "store.py": (3, "dates of an installation and of a job's end, and the age of a lock file, which has a date"),
    "endpoints.py": (1, "the date of a job"),
    "clock.py": (1, "detects steps of the clock"),
    "encoded_voices.py": (1, "the age of a file, which has a date"),
    "usage.py": (1, "periods of the calendar"),
    "voice_store.py": (2, "the age of a file, which has a date, and the date of a voice"),
    "metrics.py": (1, "dates of spans, computed from monotonic times"),
    "chat.py": (2, "dates in an answer"),
    "client_secrets.py": (1, "the date in an answer; the lifetime itself is monotonic"),
    "session.py": (1, "the date in an answer; the limit itself is monotonic"),
    "catalogue.py": (1, "the date in an answer"),
    "check.py": (1, "names a version"),
    "receipt.py": (1, "the date of a receipt"),
}


def clock_uses(tree: ast.AST) -> int:
    """Return the number of references to a function that returns the time of day."""
    return sum(isinstance(node, ast.Attribute) and ast.unparse(node) in DAY_CLOCKS for node in walk(tree))


def test_uses_of_the_wall_clock_are_found() -> None:
    assert clock_uses(ast.parse("left_s = end - time.time()\nnow = datetime.now(UTC)\nclock = time.time")) == 3
    assert clock_uses(ast.parse("left_s = end - time.monotonic()")) == 0


def test_durations_do_not_depend_on_the_wall_clock() -> None:
    """A file that begins to use the wall clock, or uses it once more, must have a reason in USES."""
    found = Counter[str]()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            found[path.name] += clock_uses(parsed(path))
    assert {name: number for name, number in found.items() if number} == {
        name: number for name, (number, _) in USES.items()
    }


def test_only_a_large_backward_clock_step_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    day_s, up_s = 1_000_000.0, 50.0
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(time=lambda: day_s, monotonic=lambda: up_s))
    clock = ClockWatch()
    seen = []
    for passed_s, step_s in ((90.0, 0.0), (0.25, -3600.0), (500.0, 0.0), (2.0, 3600.0), (0.25, -60.0), (0.25, -60.5)):
        up_s += passed_s
        day_s += passed_s + step_s
        seen.append(str(clock.fault() or ""))
    assert seen == ["", "the clock was set back by 3600 s", "", "", "", "the clock was set back by 60 s"]
