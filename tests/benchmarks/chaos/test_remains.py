"""Exactly the resources left over by ended requests, and the problems of a run, are reported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import load
from benchmarks.chaos.checks import IDLE_GAUGES, SLACK, Held, left_over, of_calm, read_gauges
from benchmarks.chaos.load import Answer, Outcomes, Verdict

NONE = dict.fromkeys((*IDLE_GAUGES, "unguided_total"), 0.0)
IDLE = Held({"engine": 48, "proxy": 3}, {"engine": 96, "proxy": 20}, 6, NONE)
THREADS = SLACK["threads"]
ASK = load.make_asks(0)[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"threads": {"engine": 48 + THREADS, "proxy": 3}}, []),
        ({"threads": {"engine": 49 + THREADS, "proxy": 3}}, [f"engine has {49 + THREADS} threads, 48 before"]),
        ({"descriptors": {"engine": 96, "proxy": 84}}, ["proxy has 84 descriptors, 20 before"]),
        ({"files": 7}, ["7 files in shared memory, 6 before"]),
        ({"files": 5}, []),
        ({"threads": {"proxy": 3}}, ["engine is missing"]),
        ({"threads": IDLE.threads | {"engine 2": 1}}, ["there is a new process, engine 2"]),
        ({"gauges": NONE | {"kv_usage": 0.01}}, ["kv_usage is 0.01, not 0"]),
        ({"gauges": NONE | {"unguided_total": 1.0}}, ["unguided_total is 1, not 0"]),
    ],
)
def test_leaked_resources_are_reported(changes: dict[str, Any], told: list[str]) -> None:
    assert left_over(IDLE, replace(IDLE, **changes)) == told


def test_required_gauges_are_read_from_the_metrics_endpoint() -> None:
    page = "# TYPE x gauge\n" + "".join(f'stretto_{name}{{model="speech"}} 0\n' for name in NONE)
    assert read_gauges(page) == NONE
    assert read_gauges(page.replace('stretto_pairs{model="speech"} 0', "stretto_pairs 2"))["pairs"] == 2
    with pytest.raises(KeyError, match="kv_usage"):
        read_gauges(page.replace("kv_usage", "kv_use"))


def outcomes(*answers: tuple[Answer, Verdict]) -> Outcomes:
    """Return the counts of these answers."""
    counted = Outcomes()
    for answer, verdict in answers:
        counted.add(ASK, "listen", answer, verdict)
    return counted


RIGHT = (Answer(is_final=True), Verdict.RIGHT)
FULL = (Answer(error="ServerFull", message="try again"), Verdict.ERROR)
FAILED = (Answer(error="ServerFailed", message="internal error"), Verdict.ERROR)
HUNG = (Answer(is_overdue=True), Verdict.HUNG)


def test_full_is_the_only_error_allowed_without_faults() -> None:
    assert of_calm(outcomes(RIGHT, FULL)) == []
    assert of_calm(outcomes(RIGHT, FAILED, FAILED)) == ["2 times: ServerFailed: internal error"]
    assert of_calm(outcomes(RIGHT, HUNG)) == ["speak 0, listen: hung; 0 samples, ''"]
    assert of_calm(outcomes(FULL)) == ["no answer was correct, so nothing has been tested"]


def test_chaos_metric_names_exist_in_the_services() -> None:
    said = "".join(path.read_text() for path in Path("python_backend/stretto/triton_io").glob("*_service.py"))
    assert [name for name in NONE if f'"{name}"' not in said] == []
