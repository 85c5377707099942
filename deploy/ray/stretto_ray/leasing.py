"""Servers for the gateway's utterances, leased from the deployment of servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any

from stretto_client import ServerUnavailable
from stretto_gateway.routed import Choose, Lease

LEASE_S = 15.0  # in which somebody has to answer: Ray's router needs milliseconds, where processors are free
AGAIN_S = 1.0  # without an answer, as of a node that is gone and nobody has noticed, somebody else is asked, too;
# twice as long without that, a third, and so on: where all are slow, an utterance should not count four times
ATTEMPTS = 4

Failures = tuple[type[Exception], ...]
Asked = dict[asyncio.Future[dict[str, Any]], Any]
"""What replicas will answer, and the responses of Ray's that the answers come by."""


def leasing(handle_of: Callable[[], Any], failures: Failures) -> Choose:
    """What chooses a server by the router of the deployment whose handle that is; failures: what Ray raises.

    Each lease is asked for in a context of its own: Ray's router knows what it has to find a replica for by the id of
    the HTTP request that the context is of, takes two of one request for the same, and looks for the second for ever.
    """

    @asynccontextmanager
    async def choose(key: str, refused: tuple[str, ...]) -> AsyncIterator[Lease]:
        handle, unready = handle_of().options(stream=True), list(refused)

        def ask() -> Any:
            return Context().run(handle.lease.remote, key, list(unready))

        for _ in range(ATTEMPTS):
            async with _first_answer(ask, failures) as (told, responses):
                if told["server"]:
                    lost = asyncio.ensure_future(_until_lost(responses, failures))
                    try:
                        yield Lease(told["name"], told["server"], lost)
                    finally:
                        lost.cancel()
                    return
            if told["name"] in unready:
                break  # nobody is left: who has refused is asked last
            unready.append(told["name"])
        raise ServerUnavailable("no server takes requests now; try again")

    return choose


@asynccontextmanager
async def _first_answer(ask: Callable[[], Any], failures: Failures) -> AsyncIterator[tuple[dict[str, Any], Any]]:
    """What the first replica that answers says, and its responses; ServerUnavailable where none says anything."""
    asked: Asked = {}
    silences: Failures = (*failures, TimeoutError, StopAsyncIteration)
    try:
        try:
            async with asyncio.timeout(LEASE_S):
                first = await _first_of(ask, asked)
            told = first.result()
        except silences as error:
            raise ServerUnavailable(f"no server takes requests now ({type(error).__name__}); try again") from None
        responses = asked.pop(first)
        _leave(asked)
        asked[first] = responses
        yield told, responses
    finally:
        _leave(asked)


async def _first_of(ask: Callable[[], Any], asked: Asked) -> asyncio.Future[dict[str, Any]]:
    """The first answer that is not a failure, else the last failure. One more is asked, up to ATTEMPTS, each time that
    one has failed or a while has gone by."""
    again_s = AGAIN_S
    while True:
        for answer in asked:
            if answer.done() and answer.exception() is None:
                return answer
        if may_ask := len(asked) < ATTEMPTS:
            responses = ask()
            asked[asyncio.ensure_future(anext(responses))] = responses
        waiting = [answer for answer in asked if not answer.done()]
        if not waiting:
            return answer
        await asyncio.wait(waiting, timeout=again_s if may_ask else None, return_when=asyncio.FIRST_COMPLETED)
        again_s *= 2


def _leave(asked: Asked) -> None:
    """Give back what was asked for. What Ray makes of that in the answers is nobody's failure."""
    for answer, responses in asked.items():
        answer.add_done_callback(lambda left: left.cancelled() or left.exception())
        answer.cancel()
        responses.cancel()


async def _until_lost(responses: Any, failures: Failures) -> None:
    """Return when the lease ends, which it does by itself only with its replica."""
    with suppress(*failures):
        async for _ in responses:
            pass
