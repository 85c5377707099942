"""vLLM's processes in tests."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stretto.engine.environment import PROCESS_METHOD
from stretto.engine.llm import SpeechLLM


@contextmanager
def forked_processes() -> Iterator[None]:
    """Make vLLM fork its processes from this one, as the language model's stub does, so that none imports vLLM again.

    Garbage is collected first. A forked process would wait for ever if it collected a gRPC client of an earlier test,
    because gRPC then joins the client's thread, which exists only here.
    """
    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROCESS_METHOD, "fork")
        yield


@contextmanager
def stopped(llm: SpeechLLM) -> Iterator[None]:
    """Stop a model's only engine, so that all requests that are sent during the `with` block are there when it runs."""
    (engine,) = llm.engine_pids
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine, signal.SIGCONT)
