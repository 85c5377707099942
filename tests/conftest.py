"""What holds for the whole suite."""

import gc

import pytest

from python_backend.engine.environment import prepare_environment

prepare_environment()  # before any test imports what imports Triton, which looks at the environment once


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Let go of what the plugin froze, or Triton's bindings report it as leaked behind the suite's last line."""
    gc.unfreeze()
    gc.collect()
