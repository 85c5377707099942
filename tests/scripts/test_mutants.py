"""Mutants are judged by the tests that execute them, and judged again by other tests."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scripts.executed_lines import ExecutedLines

ROOT = Path(__file__).parents[2]
PATH = "plugins/one/product.py"
PRODUCT = """
LIMIT = 3

def check(number):
    if number > LIMIT:
        raise ValueError("too large")
    return pow(number, 2)

def unused():
    return 1 == 2
"""
TESTS = """
import pytest
from product import check

def test_limit():
    assert check(3) == 9
    with pytest.raises(ValueError, match="^too large$"):
        check(4)
"""
WEAKER_TESTS = """
from product import check

def test_square():
    assert check(3) == 9
"""


def judged(root: Path, out: str, *words: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "scripts.mutants", *words, "--tests", "test_product.py", "--out", out]
    done = subprocess.run(command, cwd=root, check=False)
    return done.returncode, {
        f"{mutant['kind']} {mutant['after'].strip()}": mutant["result"]
        for mutant in json.loads((root / out).read_text())
    }


def write_repository(root: Path, product: str, tests: str) -> None:
    (root / "scripts").mkdir()
    for name in ("mutants.py", "executed_lines.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "pyproject.toml").write_text('[tool.ruff]\nsrc = [".", "plugins/*"]\n')
    (root / PATH).parent.mkdir(parents=True)
    (root / PATH).write_text(product)
    (root / "test_product.py").write_text(tests)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)


def test_mutant_with_which_no_test_can_run_is_killed(tmp_path: Path) -> None:
    write_repository(tmp_path, "LIMIT = 3\n", "from product import LIMIT\n\ndef test_limit():\n    assert LIMIT\n")
    (tmp_path / "conftest.py").write_text("from product import LIMIT\n\nassert LIMIT == 3\n")
    assert judged(tmp_path, "out.json", PATH) == (0, {"constant LIMIT = 4": "killed"})


def test_frame_without_a_line_is_not_recorded(tmp_path: Path) -> None:
    executed = ExecutedLines(str(tmp_path / "lines.txt"), {"product.py": [1]})
    code = SimpleNamespace(co_filename="product.py")
    for line in (3, None, 1):
        executed.trace(SimpleNamespace(f_code=code, f_lineno=line), "line", None)  # type: ignore[arg-type]
    assert executed.take() == {("product.py", 1), ("product.py", 3)}


def test_lines_that_only_another_process_executes_are_those_of_the_test_that_started_it(tmp_path: Path) -> None:
    tests = """
import multiprocessing, subprocess, sys

def test_program():
    assert subprocess.run([sys.executable, "-c", "import product; print(product.check(3))"]).returncode == 0

def test_fork():
    import product
    process = multiprocessing.get_context("fork").Process(target=product.unused)
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    write_repository(tmp_path, PRODUCT, tests)
    _, results = judged(tmp_path, "out.json", PATH)
    assert results == {
        "constant LIMIT = 4": "survived",
        "comparison if (number >= LIMIT):": "killed",
        "condition if (not (number > LIMIT)):": "killed",
        "raise pass": "not executed",
        "constant raise ValueError('too large~')": "not executed",
        "arguments return pow(2, number)": "survived",
        "constant return pow(number, 3)": "survived",
        "comparison return (1 != 2)": "survived",
        "constant return 2 == 2": "survived",
        "constant return 1 == 3": "survived",
    }


def test_mutants_are_killed_by_tests_and_survive_weaker_ones(tmp_path: Path) -> None:
    write_repository(tmp_path, PRODUCT, TESTS)
    code, before = judged(tmp_path, "before.json", PATH)
    assert code == 0
    assert before == {
        "constant LIMIT = 4": "killed",
        "comparison if (number >= LIMIT):": "killed",
        "condition if (not (number > LIMIT)):": "killed",
        "raise pass": "killed",
        "constant raise ValueError('too large~')": "killed",
        "arguments return pow(2, number)": "killed",
        "constant return pow(number, 3)": "killed",
        "comparison return (1 != 2)": "not executed",
        "constant return 2 == 2": "not executed",
        "constant return 1 == 3": "not executed",
    }
    assert (tmp_path / PATH).read_text() == PRODUCT
    (tmp_path / "test_product.py").write_text(WEAKER_TESTS)
    (tmp_path / PATH).write_text("\n" + PRODUCT)
    code, after = judged(tmp_path, "after.json", "--replay", "before.json")
    assert code == 1
    assert {name for name in before if before[name] == "killed" and after[name] != "killed"} == {
        "constant LIMIT = 4",
        "raise pass",
        "constant raise ValueError('too large~')",
    }
