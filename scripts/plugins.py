"""Find the plug-ins whose tests have to run again, because a file of theirs or one that they import changed.

    python -m scripts.plugins              # prints the names of the plug-ins that did not change
    python -m scripts.plugins test [NAME]  # runs the day tests of these plug-ins, by default of all that changed
    python -m scripts.plugins digests      # prints the content that the record has if all tests pass

`plugins/tested.json` is the record: a digest for each plug-in, stored when its day tests have passed, by the second
command or by `scripts/test.sh`. A digest covers the plug-in's package, tests and scripts, every file of this repository
that these import directly, and the lock file with the versions of other packages. It leaves out docstrings.
"""

import ast
import gc
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "plugins" / "tested.json"
LOCK = ROOT / "requirements" / "dev.txt"


def plugins() -> list[str]:
    """Return the names of the folders of all plug-ins."""
    return [path.parent.name for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))]


def own_files(name: str) -> list[Path]:
    """Return the files of a plug-in, except its documentation."""
    folder = ROOT / "plugins" / name
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"__pycache__", "docs"} & {*path.relative_to(folder).parts}
    ]


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Return the names of all modules that a file imports, and of attributes imported from modules."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def files_of(module: str) -> list[Path]:
    """Return the file of a module of this repository, or an empty list for another name."""
    folders = [ROOT / name for name in ("python_backend", "contract", "client", "gateway", ".")]
    paths = [folder / module.replace(".", "/") for folder in folders]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return [file.resolve() for file in files if file.is_file()]


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(node: Documented) -> Iterator[ast.stmt]:
    """Yield the docstrings of a module, and of all classes and functions in it."""
    if ast.get_docstring(node, clean=False) is not None:
        yield node.body[0]
    for statement in node.body:
        if isinstance(statement, Documented):
            yield from docstrings(statement)


@cache
def without_docstrings(source: bytes) -> bytes:
    """Return the lines of Python code that are neither empty nor in a docstring."""
    lines = source.splitlines()
    for docstring in docstrings(ast.parse(source)):
        for number in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
            lines[number - 1] = b""
    return b"\n".join(line for line in lines if line.strip())


def digest(name: str) -> str:
    """Return the digest, in hexadecimal, of all files that affect a plug-in's tests."""
    files = {*own_files(name), LOCK}
    modules = {module for path in own_files(name) if path.suffix == ".py" for module in imported_names(path)}
    files |= {file for module in modules for file in files_of(module)}
    total = hashlib.sha256()
    for file in sorted(files):
        content = without_docstrings(file.read_bytes()) if file.suffix == ".py" else file.read_bytes()
        total.update(f"{file.relative_to(ROOT)} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def recorded() -> dict[str, str]:
    """Return the digest of each plug-in when its tests last passed."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def unchanged() -> list[str]:
    """Return the plug-ins whose tests passed with their present files."""
    passed = recorded()
    return [name for name in plugins() if passed.get(name) == digest(name)]


def as_text(digests: dict[str, str]) -> str:
    """Return the content of the record, with a line for each plug-in."""
    return json.dumps(digests, indent=2, sort_keys=True) + "\n"


def run_tests(names: list[str]) -> int:
    """Run the day tests of each plug-in and store its digest if they pass; return 1 if any fail, else 0."""
    failed = []
    for name in names:
        before = digest(name)
        command = [sys.executable, "-m", "pytest", "-m", "not nightly", f"plugins/{name}"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
            RECORD.write_text(as_text(recorded() | {name: before}))
        else:
            failed.append(name)
    print(f"plug-ins with failed tests: {' '.join(failed) or 'none'}")
    return 1 if failed else 0


def main(words: list[str]) -> int:
    """Run a command line (see the module's docstring); return the exit status."""
    if words[:1] == ["test"]:
        return run_tests(words[1:] or [name for name in plugins() if name not in unchanged()])
    if words[:1] == ["digests"]:
        print(as_text({name: digest(name) for name in plugins()}), end="")
        return 0
    print(*unchanged())
    return 0


if __name__ == "__main__":
    gc.disable()  # syntax trees are many objects, and collecting them takes as long as parsing
    sys.exit(main(sys.argv[1:]))
