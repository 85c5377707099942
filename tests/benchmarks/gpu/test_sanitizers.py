"""Sanitizer jobs with a fake compute-sanitizer, and the kernel launches and the decoder that they watch."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import sanitizers
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.sanitizers import DONE, OURS, TOOL, run_decoder, run_tool
from tests.sources import PACKAGES

pytestmark = pytest.mark.slow
SETUP = Setup("cpu", Path())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty PATH, and remove all other places where the tool may be found."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sanitizers, "glob", lambda pattern: [])
    (tmp_path / "bin").mkdir()
    return tmp_path


def install(folder: Path, *lines: str) -> Path:
    """Write a fake tool that prints `lines` and its arguments."""
    tool = folder / TOOL
    prints = "; ".join(f"print({line!r})" for line in lines)
    tool.write_text(f"#!{sys.executable}\nimport os, sys\n{prints}\nprint(sys.argv[1:], os.environ.get('POOL'))\n")
    tool.chmod(0o755)
    return tool


def outcome(tool: str = "memcheck", limit_s: float = 300) -> dict[str, Any]:
    (line,) = run_tool(SETUP, tool, limit_s)
    return line


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((DONE, "========= ERROR SUMMARY: 0 errors"), {"errors": 0, "ok": True}),
        ((DONE, "========= Invalid __global__ read of size 4", "========= ERROR SUMMARY: 3 errors"),
         {"errors": 3, "ok": False}),
        (("========= Error: Device not supported",),
         {"left_out": "compute-sanitizer refuses this GPU: Error: Device not supported"}),
    ],
)  # fmt: skip
def test_sanitizer_summary_determines_the_outcome(
    folder: Path, lines: tuple[str, ...], expected: dict[str, Any]
) -> None:
    tool = install(folder / "bin", *lines)
    line = outcome()
    assert {name: line[name] for name in expected} == expected
    assert line["at"] == str(tool)
    assert line.keys() == {"tool", "at", *expected}


def test_decoder_thread_is_checked() -> None:
    (line,) = run_decoder(SETUP, "tiny")
    assert line["ok"]
    assert line["operators"] > 100


def test_sanitizer_checks_our_kernels_and_not_those_of_torch() -> None:
    sources = [path for folder in PACKAGES for path in folder.rglob("*.py")]
    launched = {
        name for path in sources for name in re.findall(r"@triton\.jit.*\ndef (\w+_kernel)\(", path.read_text())
    }
    ours = re.compile(OURS.removeprefix("regex="))
    assert {"advance_kernel", "_draw_kernel", "depth_attention_kernel"} <= launched
    assert all(map(ours.search, launched))
    assert ours.search("_ZN2at6native29vectorized_elementwise_kernelILi4EEEvi") is None


@pytest.mark.nightly
def test_sanitizer_walk_runs() -> None:
    sanitizers.walk(torch.device("cpu"))
