"""The kernels of these tests run in Triton's interpreter."""

from tests.engine.interpreting import make_interpreter_quick

make_interpreter_quick()
