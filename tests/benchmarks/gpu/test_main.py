"""The runner: every section gets its turn, whatever became of the others."""

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import device, parse, run_all, stretched
from benchmarks.gpu.sections import SECTIONS, Section, Setup

pytestmark = pytest.mark.slow

FAKES = "tests.benchmarks.gpu.fake_sections"


def sections(*names: str, limit_s: float = 60.0) -> dict[str, Section]:
    return {name: Section(f"{FAKES}:{name}", limit_s) for name in names}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]) + ":" + os.environ.get("PYTHONPATH", ""))
    return Setup("cpu", tmp_path / "out")


def test_a_section_that_fails_leaves_its_lines_and_its_log_and_the_next_one_runs(setup: Setup) -> None:
    records = run_all(sections("fails", "finds", "passes"), setup, 120)
    assert [record["status"] for record in records] == ["failed", "failed", "passed"]
    assert "out of luck" in records[0]["log"]
    assert [line["figure"] for line in lines(setup.lines("fails"))] == [3]
    assert [line["figure"] for line in lines(setup.lines("finds"))] == [4, 5], "later results are still had"
    assert lines(setup.lines("passes"))[0]["is_small"]
    assert [line["section"] for line in lines(setup.out / "summary.jsonl")] == ["fails", "finds", "passes"]


def test_a_section_that_hangs_is_ended_with_its_children(setup: Setup) -> None:
    start = time.monotonic()
    run_all(sections("passes"), setup, 120)
    limit_s = 5 + 3 * (time.monotonic() - start)  # time to begin, as long as this machine takes for it
    (record,) = run_all(sections("hangs", limit_s=limit_s), setup, 400)
    assert record["status"] == "timed out"
    (line,) = lines(setup.lines("hangs"))
    deadline = time.monotonic() + 30
    while is_running(line["child"]):  # killed, and gone as soon as the kernel gets to it
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_no_time_is_left_for_is_reported_as_not_run(setup: Setup) -> None:
    assert [record["status"] for record in run_all(sections("passes"), setup, 0.5)] == ["not run"]


def test_the_sections_fit_into_nine_minutes() -> None:
    assert sum(section.limit_s for section in SECTIONS.values()) < 540
    assert parse([]).limit_s < 540


def test_a_gpu_is_asked_for_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device("auto") == parse(["--dry-run"]).device == "cpu"
    with pytest.raises(SystemExit, match="no CUDA device"):
        device("cuda")


def test_sections_share_the_time_that_they_do_not_ask_for() -> None:
    few = {"parity": SECTIONS["parity"], "waits": SECTIONS["waits"]}
    total = sum(section.limit_s for section in few.values())
    assert stretched(few, total / 2) == stretched(few, total) == few
    longer = stretched(few, 3 * total)
    assert [section.limit_s for section in longer.values()] == [3 * each.limit_s for each in few.values()]
