"""The kernels of these tests run in Triton's interpreter."""

from tests.engine.interpreting import patch_once_a_launch

patch_once_a_launch()
