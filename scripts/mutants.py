"""Change product code in small ways, and run the tests that execute the changed lines, to see whether they fail.

    python -m scripts.mutants client/stretto_client --tests tests/client --count 300 --out before.json
    python -m scripts.mutants --replay before.json --tests tests/client --out after.json

A mutant is one change: another constant, another comparison, no `raise`, two arguments swapped or a condition negated;
as many of each kind as there are. The first command draws them. The second one makes the same changes again, and fails
if a mutant survives that was killed before. Both work on a copy of this tree, with its uncommitted changes.

Every mutant is a fork of one process that has imported the other packages. A test counts as executing a line of product
code if its process does so, or any process that it starts (`scripts.executed_lines`).

A mutant of code that ends processes or removes files may end any process and remove any file of this user: judge it in
a container, or below `unshare --pid --fork --kill-child --mount-proc` with a `/dev/shm` of its own.
"""

import argparse
import ast
import copy
import glob
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scripts.executed_lines import VARIABLE, ExecutedLines

ROOT = Path(__file__).parents[1]
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass
class Mutant:
    """Replacement of whole lines of a file, from `line` on. `column` is that of the change."""

    path: str
    kind: str
    line: int
    column: int
    before: str
    after: str
    whole_module: bool
    """True outside functions: then every test that executes a line of the file may notice."""
    result: str = ""
    tests: int = 0
    """Number of tests that execute the lines."""
    killer: str = ""


def change(node: ast.AST) -> tuple[str, str] | None:
    """Return the kind of change to make to a node, and its new source; None for no change."""
    new: Any = copy.deepcopy(node)
    match node:
        case ast.Constant(value=bool() as value):
            new.value = not value
            return "constant", ast.unparse(new)
        case ast.Constant(value=int() | float() as number):
            new.value = number + 1
            return "constant", ast.unparse(new)
        case ast.Constant(value=str() as text):
            new.value = f"{text}~"
            return "constant", ast.unparse(new)
        case ast.Compare(ops=[operator, *_]) if type(operator) in COMPARISONS:
            new.ops[0] = COMPARISONS[type(operator)]()
            return "comparison", f"({ast.unparse(new)})"
        case ast.Raise():
            return "raise", "pass"
        case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred | ast.GeneratorExp):
            if isinstance(second, ast.Starred) or ast.dump(first) == ast.dump(second):
                return None
            new.args[0] = second
            new.args[1] = first
            return "arguments", ast.unparse(new)
    return None


def changeable(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str, str, bool]]:
    """Yield each node that can change, with its kind, its new source, and whether it is outside functions."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[ast.expr | ast.stmt, str, str, bool]]:
        if isinstance(node, ast.JoinedStr):  # positions inside are wrong in Python 3.11
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            return
        if isinstance(node, ast.expr | ast.stmt):
            changed = change(node)
            if changed is not None:
                yield node, *changed, not in_function
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield node.test, "condition", f"(not ({ast.unparse(node.test)}))", not in_function
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns"}:
                continue
            inside = in_function or (name == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, inside)

    return visit(tree, False)


def mutants_of(path: str) -> list[Mutant]:
    """Return every mutant of a file, or of all files in a folder. The path is relative to the root."""
    if (ROOT / path).is_dir():
        files = sorted((ROOT / path).rglob("*.py"))
        return [mutant for file in files for mutant in mutants_of(str(file.relative_to(ROOT)))]
    source = (ROOT / path).read_bytes()
    lines = source.splitlines(keepends=True)
    mutants = []
    for node, mutation, text, whole_module in changeable(ast.parse(source)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first = lines[node.lineno - 1][: node.col_offset]
        last = lines[node.end_lineno - 1][node.end_col_offset :]
        before = b"".join(lines[node.lineno - 1 : node.end_lineno]).decode()
        after = (first + text.encode() + last).decode()
        mutants.append(Mutant(path, mutation, node.lineno, node.col_offset, before, after, whole_module))
    return mutants


def draw(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return `count` random mutants: one of each kind in turn, while there are some."""
    shuffled = mutants[:]
    random.Random(seed).shuffle(shuffled)
    turns = Counter[str]()
    order = dict[int, int]()
    for mutant in shuffled:
        order[id(mutant)] = turns[mutant.kind]
        turns[mutant.kind] += 1
    shuffled.sort(key=lambda mutant: order[id(mutant)])
    return shuffled[:count]


class Recorder:
    """Plugin of pytest that records the product lines that each test executes, and the modules it imports.

    Lines of fixtures count for all tests of their file, because others may use the fixture without executing it.
    """

    def __init__(self, executed: ExecutedLines) -> None:
        self.executed = executed
        self.lines = defaultdict[str, set[tuple[str, int]]](set)
        self.seconds = defaultdict[str, float](float)
        self.failed = set[str]()
        self.key = "import"

    def _go_on_with(self, key: str) -> None:
        """Attribute the lines recorded from now on to another test or file."""
        self.lines[self.key] |= self.executed.take()
        self.key = key

    def pytest_sessionstart(self) -> None:
        self.executed.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._go_on_with(item.nodeid.partition("::")[0])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._go_on_with(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def found(self) -> dict[str, Any]:
        """Return all records as JSON values."""
        sys.settrace(None)
        self._go_on_with("")
        installed = [name for name, module in sys.modules.copy().items() if "site-packages" in _file(module)]
        return {
            "lines": {key: sorted(lines) for key, lines in self.lines.items()},
            "seconds": self.seconds,
            "failed": sorted(self.failed),
            "installed": installed,
            "environment": dict(os.environ),  # with what the tests' conftest.py has set, before it imports anything
        }


class Chosen:
    """Plugin of pytest that runs the given tests in order, and stores the first one that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {name: index for index, name in enumerate(tests)}
        self.killer = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order), key=lambda item: self.order[item.nodeid]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.killer:
            self.killer = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.killer:
            self.killer = report.nodeid or "import"


class Tree:
    """Copy of this repository's tracked and new files, in which tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = folder.with_name("result.json")
        self.log = folder.with_name("tests.log")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")

    def run(self, run_tests: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any] | None:
        """Return a function's result from a fork with imports from this tree; None if it takes too long."""
        self.result.unlink(missing_ok=True)
        process = os.fork()
        if process == 0:
            try:
                os.setsid()
                self._enter()
                self.result.write_text(json.dumps(run_tests()))
            except BaseException:
                traceback.print_exc()  # into the log, because the process ends without a word
            finally:
                os._exit(0)
        end = time.monotonic() + seconds
        while os.waitpid(process, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return None
            time.sleep(0.02)
        with suppress(ProcessLookupError):  # servers that tests left behind
            os.killpg(process, signal.SIGKILL)
        return dict(json.loads(self.result.read_text())) if self.result.exists() else {"killer": "process ended"}

    def _enter(self) -> None:
        """Send output to the log, and import product code and tests from this tree from now on."""
        log = os.open(self.log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for stream in range(3):
            os.dup2(log, stream)
        os.chdir(self.folder)
        project = tomllib.loads((self.folder / "pyproject.toml").read_text())
        sources = project["tool"]["ruff"]["src"]
        roots = [path for source in sources for path in glob.glob(source, root_dir=self.folder)]
        roots = [str((self.folder / path).resolve()) for path in roots]
        os.environ["PYTHONPATH"] = os.pathsep.join(roots)
        other = [path for path in sys.path if path and (".venv" in path or not Path(path).is_relative_to(ROOT))]
        sys.path[:] = [*roots, *other]
        for name, module in sys.modules.copy().items():
            file = _file(module)
            if file.startswith(f"{ROOT}/") and "site-packages" not in file and name != "__main__":
                del sys.modules[name]


def _file(module: object) -> str:
    return str(getattr(module, "__file__", None))


def pytest_options(paths: list[str], marks: str) -> list[str]:
    """Return arguments of pytest that run tests in this process and write nothing into the tree."""
    return ["-q", "-p", "no:cacheprovider", "-m", marks, *paths]


def position(source: str, mutant: Mutant) -> int | None:
    """Return the offset of a mutant's lines in a possibly changed file, nearest to their old place; None if gone."""
    starts = []
    start = source.find(mutant.before)
    while start >= 0:
        if start == 0 or source[start - 1] == "\n":
            starts.append(start)
        start = source.find(mutant.before, start + 1)
    return min(starts, key=lambda start: abs(source.count("\n", 0, start) + 1 - mutant.line), default=None)


class Trial:
    """Tests of a tree with the lines that they execute, for judging mutants."""

    def __init__(self, tree: Tree, mutants: list[Mutant], tests: list[str], marks: str, seconds: float) -> None:
        self.tree = tree
        self.marks = marks
        self.seconds = seconds
        wanted = defaultdict[str, set[int]](set)
        for mutant in mutants:
            wanted[mutant.path] |= self._lines_of(mutant)

        recorded = tree.run(partial(self._record, wanted, tests), 3600)
        if not recorded or not recorded.get("seconds"):
            raise SystemExit(f"mutants: no test ran in {' '.join(tests)}: {tree.log.read_text()[-2000:]}")
        self.durations: dict[str, float] = recorded["seconds"]
        self.failed = set(recorded["failed"])
        names = {str(tree.folder / path): path for path in wanted}
        self.lines = {key: {(names[path], line) for path, line in lines} for key, lines in recorded["lines"].items()}
        os.environ.update(recorded["environment"])
        for name in recorded["installed"]:
            with suppress(Exception):
                importlib.import_module(name)
        for path in wanted:  # bytecode is compared by second and size, which a mutant may share with its original
            for compiled in (tree.folder / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
                compiled.unlink()
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def _record(self, wanted: dict[str, set[int]], tests: list[str]) -> dict[str, Any]:
        """Run the tests; return the records of this process and of those that it starts."""
        folder = self.tree.folder.with_name("recorded")
        folder.mkdir()
        lines = {str(self.tree.folder / path): sorted(numbers) for path, numbers in wanted.items()}
        arguments: dict[str, Any] = {"log": str(folder / "lines.txt"), "wanted": lines}
        (folder / "arguments.json").write_text(json.dumps(arguments))
        (folder / "sitecustomize.py").write_text(
            "from scripts.executed_lines import start_in_child\n\nstart_in_child()\n"
        )
        os.environ[VARIABLE] = str(folder / "arguments.json")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
        recorder = Recorder(ExecutedLines(**arguments))
        pytest.main(pytest_options(tests, self.marks), [recorder])
        del os.environ[VARIABLE]
        return recorder.found()

    def _lines_of(self, mutant: Mutant) -> set[int]:
        """Return the numbers of a mutant's lines in the tree, empty if they are gone."""
        source = (self.tree.folder / mutant.path).read_text()
        start = position(source, mutant)
        first = 0 if start is None else source.count("\n", 0, start) + 1
        return set() if start is None else {*range(first, first + mutant.before.count("\n"))}

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that execute a line of the mutant, short files and tests first."""
        wanted = {(mutant.path, number) for number in self._lines_of(mutant)}
        keys = {
            key
            for key, lines in self.lines.items()
            if (any(path == mutant.path for path, _ in lines) if mutant.whole_module else not lines.isdisjoint(wanted))
        }
        names = [name for name in self.durations if keys & {name, name.partition("::")[0]}]
        if not names and (mutant.whole_module or "import" in keys):
            names = list(self.durations)
        of_file = defaultdict[str, float](float)
        for name in names:
            of_file[name.partition("::")[0]] += self.durations[name]
        names.sort(key=lambda name: (of_file[name.partition("::")[0]], name.partition("::")[0], self.durations[name]))
        return [name for name in names if name not in self.failed]

    def judge(self, mutant: Mutant) -> None:
        """Set the result of a mutant."""
        path = self.tree.folder / mutant.path
        source = path.read_text()
        start = position(source, mutant)
        if start is None:
            mutant.result = "gone"
            return
        tests = self.tests_of(mutant)
        mutant.tests = len(tests)
        if not tests:
            mutant.result = "not executed"
            return
        files = list(dict.fromkeys(name.partition("::")[0] for name in tests))

        path.write_text(source[:start] + mutant.after + source[start + len(mutant.before) :])
        for group in filter(None, (files[:2], files[2:8], files[8:])):  # the first ones kill most mutants
            outcome = self.tree.run(partial(self._first_failure, group, tests), self.seconds)
            mutant.killer = "time limit" if outcome is None else outcome["killer"]
            if mutant.killer:
                break
        path.write_text(source)
        mutant.result = "killed" if mutant.killer else "survived"

    def _first_failure(self, files: list[str], tests: list[str]) -> dict[str, Any]:
        chosen = Chosen(tests)
        code = pytest.main(["-x", *pytest_options(files, self.marks)], [chosen])
        could_run = code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        return {"killer": chosen.killer if could_run else "import"}


def main(words: list[str]) -> int:
    """Judge the mutants; return 1 if a mutant survives that was killed before."""
    parser = argparse.ArgumentParser(prog="mutants", description="Change product code and see whether tests fail.")
    parser.add_argument("files", nargs="*", help="product files or folders, relative to the root")
    parser.add_argument("--tests", nargs="+", required=True, help="files or folders of tests")
    parser.add_argument("--marks", default="not nightly", help="expression of pytest's -m")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120, help="time limit of a mutant, which counts as killed")
    parser.add_argument("--replay", type=Path, help="stored mutants, instead of drawn ones")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the mutants with their results")
    options = parser.parse_args(words)
    if options.replay:
        mutants = [Mutant(**stored) for stored in json.loads(options.replay.read_text())]
    else:
        mutants = draw([mutant for path in options.files for mutant in mutants_of(path)], options.count, options.seed)
    before = [mutant.result for mutant in mutants]
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        tree = Tree(Path(folder).resolve() / "tree")
        trial = Trial(tree, mutants, options.tests, options.marks, options.seconds)
        for name in sorted(trial.failed):
            print(f"left out, because it fails without a change: {name}")
        for mutant in mutants:
            trial.judge(mutant)
            killer = mutant.killer or mutant.after.strip()
            print(f"{mutant.result:12s} {mutant.path}:{mutant.line} {mutant.kind:10s} {killer}", flush=True)
            options.out.write_text(json.dumps([asdict(mutant) for mutant in mutants], indent=1))
    lost = [m for m, result in zip(mutants, before, strict=True) if result == "killed" and m.result != "killed"]
    for mutant in lost:
        print(f"no longer killed: {mutant.path}:{mutant.line} {mutant.kind}: {mutant.after.strip()}")
    print(*(f"{count} {result}" for result, count in Counter(m.result for m in mutants).items()), sep=", ")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
