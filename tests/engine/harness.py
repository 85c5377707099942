"""The engine of `stretto.testing`, with imported objects excluded from garbage collection."""

from typing import Any, Self

from vllm import SamplingParams
from vllm.v1.request import Request

from stretto.engine.reply_rules import TextUpdate, updates_to_extra_args
from stretto.testing.conformance import DEFAULTS, Answer
from stretto.testing.conformance import Engine as SteppedEngine
from tests import heap

__all__ = ["DEFAULTS", "Answer", "Engine", "update_request"]


def update_request(*updates: TextUpdate) -> Request:
    """Return the message that carries further ids for requests in progress."""
    params = SamplingParams(max_tokens=1, extra_args=updates_to_extra_args(updates))
    return Request(updates[0].request_id, [0], params, None)


class Engine(SteppedEngine):
    """An engine core with its scheduler and worker, as a context manager that shuts it down."""

    def __init__(self, *arguments: Any, **engine_args: Any) -> None:
        heap.set_aside()
        super().__init__(*arguments, **engine_args)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
