"""Files that docs and docstrings mention exist."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from setup import PLUGINS

ROOT, VLLM = Path(__file__).parents[1], Path(importlib.util.find_spec("vllm").origin).parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
NAMED = re.compile(r"`([\w./-]+\.(?:py|sh|md|pbtxt))`|`(deploy/[\w./-]+)`")
MODULES = re.compile(r'"(stretto\w*(?:\.\w+)+):(\w+)"')  # as in registries, which import a module by its name
IMPORTED = re.compile(r'import_module\("((?:tests|plugins|benchmarks|lab)\.[\w.]+)"\)')
TEXTS = (".md", ".py", ".pbtxt", ".sh", ".yaml")
FILES = [*TRACKED, *(f"vllm/{path.relative_to(VLLM)}" for path in (VLLM / "v1").rglob("*.py"))]
OTHERS = {  # of other projects
    "huggingface.py",
    "flow_inference.py",
    "web_demo.py",
    "cosyvoice/hifigan/generator.py",
    "vita_audio/data/dataset_qwen2.py",
    "dataset_qwen2.py",
    "tools/inference_sts.py",
}


def named(path: str) -> set[str]:
    """Return the files that a tracked file mentions in backquotes."""
    found = NAMED.finditer((ROOT / path).read_text(errors="replace")) if path.endswith(TEXTS) else ()
    return {match[1] or match[2] for match in found}


READERS = [path for path in TRACKED if path != "CHANGELOG.md" and (ROOT / path).is_file() and named(path)]


def test_architecture_tree_lists_every_folder() -> None:
    shown = set(re.findall(r"^    (\w+)/", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
    assert {path.partition("/")[0] for path in TRACKED if "/" in path and not path.startswith(".")} <= shown


def test_docs_pages_with_file_names_are_found() -> None:
    assert {"docs/engine.md", "docs/architecture.md"} <= set(READERS)


@pytest.mark.parametrize("path", READERS)
def test_referenced_files_exist(path: str) -> None:
    missing = [
        name for name in named(path) - OTHERS if not any(f"/{file}".endswith(f"/{name.lstrip('./')}") for file in FILES)
    ]
    assert not missing


def test_modules_that_tools_import_by_name_exist() -> None:
    """Jobs for a GPU import modules of tests when they begin, so a name that is wrong would end them there."""
    names = {
        name
        for path in TRACKED
        if path.startswith(("benchmarks/", "lab/", "scripts/", "plugins/")) and path.endswith(".py")
        for name in IMPORTED.findall((ROOT / path).read_text())
    }
    assert len(names) > 10
    files = [name.replace(".", "/") for name in names]
    assert not [file for file in files if not {f"{file}.py", f"{file}/__init__.py"} & {*TRACKED}]


def test_registry_module_attributes_exist() -> None:
    sources = [
        path
        for path in TRACKED
        if path.startswith(("python_backend/", "gateway/", "plugins/")) and path.endswith(".py")
    ]
    names = {
        match for path in sources if (ROOT / path).is_file() for match in MODULES.findall((ROOT / path).read_text())
    }
    missing = []
    for module, attribute in names:
        folder = PLUGINS.get(module.partition(".")[0], "python_backend")
        file = ROOT / folder / module.replace(".", "/")
        found = [path for path in (file.with_suffix(".py"), file / "__init__.py") if path.is_file()]
        if not found or not re.search(
            rf"^(class|def) {attribute}\b|^{attribute}\b", found[0].read_text(), re.MULTILINE
        ):
            missing.append(f"{module}:{attribute}")
    assert len(names) > 5
    assert not missing
