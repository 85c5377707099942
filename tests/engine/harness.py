"""The engine of `stretto.testing`, with imported objects excluded from garbage collection."""

import gc
from typing import Any, ClassVar, Self
from weakref import WeakSet

import zmq
from vllm import SamplingParams
from vllm.v1.request import Request

from stretto.engine.reply_rules import TextUpdate, updates_to_extra_args
from stretto.testing.conformance import DEFAULTS, Answer
from stretto.testing.conformance import Engine as SteppedEngine
from tests import heap
from tests.engine.attention_cache import SMALL, set_cache_size

__all__ = ["DEFAULTS", "Answer", "Engine", "close_all", "update_request"]


def update_request(*updates: TextUpdate) -> Request:
    """Return the message that carries further ids for requests in progress."""
    params = SamplingParams(max_tokens=1, extra_args=updates_to_extra_args(updates))
    return Request(updates[0].request_id, [0], params, None)


class Engine(SteppedEngine):
    """An engine core with its scheduler and worker, as a context manager that shuts it down.

    Args:
        *arguments: As of `stretto.testing`'s engine.
        cache_size: Bytes of the second-level cache that attention assumes; None for the processor's.
        **engine_args: As of `stretto.testing`'s engine.
    """

    opened: ClassVar[WeakSet["Engine"]] = WeakSet()

    def __init__(self, *arguments: Any, cache_size: int | None = SMALL, **engine_args: Any) -> None:
        heap.set_aside()
        if cache_size is not None:
            set_cache_size(cache_size)
        super().__init__(*arguments, **engine_args)
        self.opened.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Stop the engine."""
        self.opened.discard(self)
        super().shutdown()


def close_all() -> None:
    """Stop the engines and close the sockets that failed tests have left open.

    A failure's traceback keeps the queues of an engine's ranks. pyzmq waits for their sockets for ever if they are open
    when the interpreter ends, because vLLM closes them only if they are collected before that.
    """
    for engine in list(Engine.opened):
        engine.shutdown()
    heap.take_back()
    for each in gc.get_objects():
        if issubclass(type(each), zmq.Context):  # `isinstance` would import lazy modules
            each.destroy(linger=0)
