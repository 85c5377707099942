"""The architecture as a test: who may import whom, how long things may be, and which names are banned."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "python_backend"

ALLOWED = {
    "config": {"errors"},
    "errors": set(),
    "streams": {"errors"},
    "sampling": {"streams", "errors"},
    "families": {"streams", "sampling", "errors"},
    "codec": {"errors"},
    "preprocessing": {"families", "sampling", "streams", "codec", "config", "errors"},
    "engine": {"families", "sampling", "streams", "config", "errors"},
    "decoder": {"families", "codec", "streams", "config", "errors"},
    "triton_io": {"streams", "families", "config", "errors"},
}
LIBRARIES = {
    "vllm": {"engine"},
    "triton_python_backend_utils": {"triton_io"},
    "transformers": {"preprocessing", "engine", "codec"},
}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CLASS_LINES, MAX_CONSTRUCTOR_ARGUMENTS, MAX_ADAPTER_LINES = 300, 50, 150, 5, 80
BANNED_NAMES = {"cfg", "utils", "helpers", "common", "misc", "shadow", "n_q", "card"}

SOURCES = sorted(
    path for folder in (PACKAGE, "client", "scripts", "model_repository") for path in (ROOT / folder).rglob("*.py")
)
ADAPTERS = [path for path in SOURCES if path.name == "model.py"]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def part_of(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == PACKAGE and len(names) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards_only(path: Path) -> None:
    part = path.relative_to(ROOT).with_suffix("").parts
    used = {name for name in map(part_of, imports(path)) if name}
    if part[0] == PACKAGE and len(part) > 1 and part[1] != "__init__":
        assert used - {part[1]} <= ALLOWED[part[1]]
    if part[0] == "client":
        assert not used, "the client knows nothing of the server's code"
    if path in ADAPTERS:
        assert len(used - {"triton_io", "config", "errors", "streams", "families", "codec"}) <= 1, (
            "an adapter drives one package"
        )
    for library, owners in LIBRARIES.items():
        if any(name.split(".")[0] == library for name in imports(path)) and part[0] == PACKAGE:
            assert part[1] in owners, f"{library} is for {owners}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_classes_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (MAX_ADAPTER_LINES if path in ADAPTERS else MAX_FILE_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path.name}:{node.lineno} {node.name}"
            if node.name == "__init__":
                assert len(node.args.args + node.args.kwonlyargs) - 1 <= MAX_CONSTRUCTOR_ARGUMENTS, (
                    f"{path.name}:{node.lineno}"
                )
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < MAX_CLASS_LINES, f"{path.name}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_names(path: Path) -> None:
    assert path.stem not in BANNED_NAMES
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        is_ours = not token.line.startswith("from torch.")  # torch may call its own modules what it likes
        if token.type == tokenize.NAME and is_ours:
            assert token.string not in BANNED_NAMES, f"{path.name}:{token.start[0]} {token.string}"


def test_every_source_file_has_a_docstring() -> None:
    missing = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not missing


def test_importing_the_package_is_cheap() -> None:
    assert not imports(ROOT / PACKAGE / "__init__.py")
