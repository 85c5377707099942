"""The architecture as a test: who may import whom, how long things may be, and which names are banned."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python_backend" / "stretto"
NAME, GATEWAY = "stretto", "stretto_gateway"

# What each folder may import of ours, beside itself. A folder inside another is named with its path.
ALLOWED = {
    "errors": set(),
    "untrusted_files": {"errors"},
    "plugins": {"command_line", "errors"},
    "config": {"errors"},
    "command_line": set(),
    "cuda_graphs": set(),
    "limits": set(),
    "disconnects": set(),
    "streams": set(),
    "records": {"streams", "errors"},
    "sampling": {"errors"},
    "families": {"records", "streams", "codec", "plugins", "untrusted_files", "errors"},
    "families/family.py": {"families", "records", "streams", "errors"},
    "families/model.py": {"families", "engine/models"},
    "families/convert*.py": {"families", "checkpoints", "codec", "untrusted_files", "errors"},
    "codec": {"plugins", "untrusted_files", "errors"},
    "preprocessing": {"families", "records", "streams", "codec", "limits", "errors"},
    "checkpoints": {
        "families", "preprocessing", "codec", "launcher", "config", "command_line", "untrusted_files", "errors",
    },
    "engine": {"engine/kernels", "families", "records", "streams", "config", "errors"},
    "engine/scheduling": {"engine", "families", "records", "streams", "errors"},
    "engine/worker": {
        "engine", "engine/kernels", "families", "sampling", "records", "streams", "cuda_graphs", "errors",
    },
    "engine/models": {"engine", "engine/worker", "engine/kernels", "families", "errors"},
    "engine/kernels": {"sampling", "errors"},
    "testing": {"engine", "families", "records", "streams", "config", "plugins", "errors"},
    "decoder": {"codec", "records", "streams", "config", "cuda_graphs", "errors"},
    "triton_io": {"families", "records", "streams", "config", "limits", "disconnects", "errors"},
    "launcher": {"triton_io", "proxy", "disconnects", "command_line"},
    "proxy": {"limits", "disconnects"},
}  # fmt: skip
LIBRARIES = {
    "vllm": {"engine", "families/model.py", "testing"},
    "triton_python_backend_utils": {"triton_io"},
    "transformers": {
        "families",
        "families/model.py",
        "families/convert*.py",
        "engine",
        "codec",
        "checkpoints",
        "testing",
    },
    "torch": {
        "cuda_graphs",
        "sampling",
        "families",
        "families/model.py",
        "families/convert*.py",
        "codec",
        "checkpoints",
        "engine",
        "decoder",
        "triton_io",
        "testing",
    },
}
# Outer bounds against accidents, not a style: what is always read together belongs in one file.
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CLASS_LINES, MAX_CONSTRUCTOR_ARGUMENTS, MAX_ADAPTER_LINES = 600, 80, 300, 8, 80
BANNED_NAMES = {"cfg", "utils", "helpers", "common", "misc", "shadow", "n_q", "card"}
BANNED_WORD = re.compile(rf"\b(?:{'|'.join(BANNED_NAMES)})\b")

SOURCES = sorted(
    path
    for folder in "python_backend client gateway scripts benchmarks training deploy model_repository".split()
    for path in (ROOT / folder).rglob("*.py")
)
OURS = [path for path in SOURCES if path.is_relative_to(PACKAGE)]
ADAPTERS = [path for path in SOURCES if path.is_relative_to(ROOT / "model_repository")]


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file, which several of these tests look at."""
    return ast.parse(path.read_text())


@cache
def statements(path: Path) -> list[ast.stmt]:
    """All statements of a file, also those inside others; no expressions, which are most of a tree."""
    found, left = [], list[ast.AST](parsed(path).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.stmt):
            found.append(node)
        left += [each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.expr)]
    return found


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def part_of(names: Sequence[str]) -> str | None:
    """The folder of the table that a module's path inside the package belongs to."""
    if not names:
        return None
    nested = "/".join(names[:2])
    return nested if nested in ALLOWED else names[0]


def rule_of(names: Sequence[str]) -> str:
    """The line of the table that holds for a module: its folder's, or that of its role in a family."""
    part = part_of(names)
    assert part is not None, names
    if part == "families" and len(names) == 3:
        roles = (key for key in ALLOWED if key.startswith("families/"))
        return next((key for key in roles if fnmatch(f"families/{names[2]}.py", key)), part)
    return part


def used_parts(path: Path) -> set[str]:
    modules = (module.split(".") for module in imports(path))
    return {part for names in modules if names[0] == NAME and (part := part_of(names[1:]))}


def identity(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """How `path` is imported."""
    folders = ("python_backend", "client", "gateway", "deploy/ray", "")
    root = next(ROOT / folder for folder in folders if path.is_relative_to(ROOT / folder))
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Mapping[str, Path]) -> set[str]:
    """Which of the `known` modules a file imports, wherever in it: also where only a type checker looks."""
    found: set[str] = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known.keys() or {node.module or ""}
    return found & known.keys()


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward_imports(path: Path) -> list[str]:
    """Return one line for each import of `path` that the tables above do not allow."""
    names = path.relative_to(PACKAGE).with_suffix("").parts
    if names[0] in ("__init__", "__main__", "cli"):
        return []
    rule = rule_of(names)
    owner = rule if "." in rule else names[0]
    used = {module.split(".")[0] for module in imports(path)}
    found = [f"{identity(path)} imports {part}" for part in sorted(used_parts(path) - {part_of(names)} - ALLOWED[rule])]
    return found + [
        f"{identity(path)} imports {library}, which is for {sorted(owners)}"
        for library, owners in LIBRARIES.items()
        if library in used and owner not in owners
    ]


def test_imports_go_downwards_only() -> None:
    violations = [line for path in OURS for line in upward_imports(path)]
    assert not violations, "\n".join(violations)


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {module_name(path): path for path in SOURCES if not path.is_relative_to(ROOT / "model_repository")}
    assert not find_circle({name: imported_modules(path, known) for name, path in known.items()})


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def forbidden_roots(path: Path) -> set[str]:
    """Return the top-level packages that a file may not import, by the program that it belongs to."""
    forbidden = {"tests"}
    if path.is_relative_to(ROOT / "client"):
        forbidden |= {NAME, GATEWAY, "scripts", "benchmarks", "training"}
    elif path.is_relative_to(ROOT / "gateway"):
        forbidden |= {NAME, "scripts", "benchmarks", "training"}  # the gateway reaches the server through the client
    elif path.is_relative_to(ROOT / "deploy"):
        forbidden |= {NAME}
    elif path in OURS:
        forbidden |= {"scripts", "benchmarks", "training"} | ({GATEWAY} if path.name != "cli.py" else set())
    return forbidden


def test_programs_around_the_package_keep_to_their_side() -> None:
    violations = []
    for path in SOURCES:
        used = {module.split(".")[0] for module in imports(path)} & forbidden_roots(path)
        violations += [f"{identity(path)} imports {root}" for root in sorted(used)]
    for path in ADAPTERS:
        driven = {part.split("/")[0] for part in used_parts(path)}
        driven -= {"triton_io", "config", "errors", "records", "families", "codec"}
        if len(driven) > 1:
            violations.append(f"{identity(path)} drives more than one package: {sorted(driven)}")
    assert not violations, "\n".join(violations)


def test_converters_are_imported_by_name_alone() -> None:
    converters = {module_name(path): path for path in OURS if path.stem.startswith("convert")}
    assert converters
    users = [path for path in OURS if imported_modules(path, converters) and path not in converters.values()]
    assert not users


def oversized(path: Path) -> list[str]:
    """Return one line for the file if it is too long, and one for each function that is or takes too much."""
    num_lines, most = len(path.read_text().splitlines()), MAX_ADAPTER_LINES if path in ADAPTERS else MAX_FILE_LINES
    found = [f"{identity(path)}: {num_lines} lines"] if num_lines > most else []
    for node in statements(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                found.append(f"{identity(path)}:{node.lineno}: {node.name} is too long")
            num_arguments = len(node.args.args + node.args.kwonlyargs) - 1
            if node.name == "__init__" and num_arguments > MAX_CONSTRUCTOR_ARGUMENTS:
                found.append(f"{identity(path)}:{node.lineno}: {num_arguments} constructor arguments")
    return found


def test_files_and_functions_stay_within_outer_bounds() -> None:
    violations = [line for path in SOURCES for line in oversized(path)]
    assert not violations, "\n".join(violations)


def class_sizes(sources: Mapping[str, list[ast.stmt]]) -> dict[tuple[str, str], int]:
    """The lines of every class, (module, name), with those of all classes of `sources` that it inherits from."""
    classes: dict[tuple[str, str], ast.ClassDef] = {}
    names: dict[str, dict[str, tuple[str, str]]] = {}
    for module, nodes in sources.items():
        names[module] = {}
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                classes[module, node.name] = node
                names[module][node.name] = module, node.name
            elif isinstance(node, ast.ImportFrom):
                known = {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
                names[module] = known | names[module]

    def lineage(key: tuple[str, str]) -> set[tuple[str, str]]:
        found, node = {key}, classes[key]
        for base in node.bases:
            while isinstance(base, ast.Subscript):  # Generic[...] and its like
                base = base.value
            parent = names[key[0]].get(ast.unparse(base), ("", ""))
            if parent in classes and parent != key:
                found |= lineage(parent)
        return found

    def num_lines(key: tuple[str, str]) -> int:
        node = classes[key]
        assert node.end_lineno is not None
        return node.end_lineno - node.lineno + 1

    return {key: sum(map(num_lines, lineage(key))) for key in classes}


def test_classes_are_short_with_all_that_they_inherit_of_ours() -> None:
    sizes = class_sizes({module_name(path): statements(path) for path in SOURCES if path not in ADAPTERS})
    long = {key: size for key, size in sizes.items() if size > MAX_CLASS_LINES}
    assert not long


def test_inherited_lines_count_once_each() -> None:
    base = "class A:\n    x = 1\n    y = 2\n\nclass B(A): pass\n"
    heir = "from base import A, B\nfrom other import C\n\nclass D(B, A, C):\n    z = 3\n"
    sizes = class_sizes({"base": ast.parse(base).body, "heir": ast.parse(heir).body})
    assert sizes == {("base", "A"): 3, ("base", "B"): 4, ("heir", "D"): 6}


def banned_names(path: Path) -> list[str]:
    """Return one line for each use of a banned name in `path`, which may be the file's own."""
    found = [f"{identity(path)}: its name"] if path.stem in BANNED_NAMES else []
    text = path.read_text()
    if not BANNED_WORD.search(text):
        return found  # skip the tokenizer, which is needed only to leave out strings and comments
    return found + [
        f"{identity(path)}:{token.start[0]}: {token.string}"
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME
        and token.string in BANNED_NAMES
        and not token.line.startswith(("from torch.", "from packaging."))  # modules of other packages
    ]


def test_no_banned_names() -> None:
    violations = [line for path in SOURCES for line in banned_names(path)]
    assert not violations, "\n".join(violations)


def test_every_source_file_has_a_docstring() -> None:
    missing = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(parsed(path))]
    assert not missing


def test_importing_the_package_is_cheap() -> None:
    """`SpeechLLM` is a name of the package, and imported only when it is asked for."""
    loaded = "import stretto, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "stretto" in names
    assert not {"numpy", "pydantic", "torch", "vllm"} & set(names)
    with pytest.raises(AttributeError, match="no attribute 'Speech'"):
        __import__("stretto").Speech  # noqa: B018
