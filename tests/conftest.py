"""What holds for the whole suite."""

import gc

import pytest


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Let go of what the plugin froze, or Triton's bindings report it as leaked behind the suite's last line."""
    gc.unfreeze()
    gc.collect()
