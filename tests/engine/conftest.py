"""Run all kernels of these tests in Triton's interpreter."""

from tests.engine.interpreting import make_interpreter_quick

make_interpreter_quick()
