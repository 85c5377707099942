"""vLLM's own processes in tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stretto.engine.launch import PROCESS_METHOD


@contextmanager
def forked_processes() -> Iterator[None]:
    """What vLLM starts is forked from this process, as the language model's stub has it: none imports vLLM again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROCESS_METHOD, "fork")
        yield
