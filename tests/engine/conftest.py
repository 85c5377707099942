"""Run all kernels of these tests in Triton's interpreter, and end a run although tests have failed."""

import sys

from tests.engine.interpreting import make_interpreter_quick

make_interpreter_quick()


def pytest_unconfigure() -> None:
    """Close what failed tests have left open, if one has imported vLLM."""
    if harness := sys.modules.get("tests.engine.harness"):
        harness.close_all()
