"""The kernels also compile for CUDA devices, because the interpreter accepts code that a compiler may refuse."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from stretto.engine.kernels.gpu.step_draw import StepRules
from tests.sources import PACKAGES


def triton_functions() -> list[tuple[Path, ast.FunctionDef]]:
    """Return all functions that Triton compiles."""
    return [
        (path, node)
        for folder in PACKAGES
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(by) for by in node.decorator_list)
    ]


def compiled(cache: Path, *arguments: str) -> list[str]:
    """Run a module of this folder without the interpreter and return its output lines."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", *arguments]
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_records_are_arguments_of_triton_functions_only_as_constants() -> None:
    """Triton 3.6 (the host of the benchmarks) refuses `f(rules.family)`, but takes a local `family: tl.constexpr`."""
    records = {name for name, kind in get_type_hints(StepRules).items() if kind not in (int, bool, str)}
    assert records == {"family"}
    records |= {"groups", "script"}  # of plug-ins
    functions = triton_functions()
    assert len(functions) > 40
    wrong = [
        f"{path.name}: {ast.unparse(call)}"
        for path, function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        for given in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(given, ast.Attribute) and given.attr in records
    ]
    assert not wrong


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_kernels_compile_for_cuda_and_keep_their_values_in_registers(tmp_path: Path, capability: str) -> None:
    lines = [line.split() for line in compiled(tmp_path, "tests.engine.kernels.gpu.compile", capability)]
    kernels = {node.name for _, node in triton_functions() if node.name.endswith("_kernel")}
    assert {name for _, name, *_ in lines} == kernels
    assert min(int(size) for _, _, size, *_ in lines) > 1000


@pytest.mark.slow
@pytest.mark.nightly
def test_each_step_kernel_compiles_once_for_all_step_sizes(tmp_path: Path) -> None:
    assert compiled(tmp_path, "tests.engine.kernels.gpu.specialise_step") == [
        "_draw_kernel 1",
        "attempt_keys_kernel 1",
        "text_maxima_kernel 1",
        "draw_text_kernel 1",
        "draw_streams_kernel 2",  # one over stream 0, one over the others
        "advance_kernel 1",
    ]


@pytest.mark.slow
def test_kernels_of_a_codec_compile_once_for_all_windows_and_batches(tmp_path: Path) -> None:
    """So a sample's bits cannot depend on its chunk or batch through another binary."""
    assert compiled(tmp_path, "tests.engine.kernels.gpu.specialise_codec") == ["product_kernel 1", "depthwise_kernel 1"]
