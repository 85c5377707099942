"""Leases of servers from the deployment, for the gateway's utterances."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any

from stretto_client import ServerUnavailable
from stretto_gateway.routed import Choose, Lease

LEASE_S = 15.0  # time limit for an answer; Ray's router needs milliseconds if CPUs are idle
# Without an answer for this long, for example from a dead node, another replica is asked as well. The wait doubles for
# each further one, so that an utterance is not counted four times when all replicas are slow.
AGAIN_S = 1.0
ATTEMPTS = 4

Failures = tuple[type[Exception], ...]
Asked = dict[asyncio.Future[dict[str, Any]], Any]
"""Pending answers of replicas, with the Ray responses that deliver them."""


def leasing(handle_of: Callable[[], Any], failures: Failures) -> Choose:
    """Return a function that leases a server through the deployment's router.

    Each lease is requested in its own context, because Ray's router identifies pending requests by the id of the
    context's HTTP request. It treats two requests with the same id as one, and searches for a replica for the second
    forever.

    Args:
        failures: Exceptions raised by Ray.
    """

    @asynccontextmanager
    async def choose(key: str, refused: tuple[str, ...]) -> AsyncIterator[Lease]:
        handle = handle_of().options(stream=True)
        unready = list(refused)

        def ask() -> Any:
            return Context().run(handle.lease.remote, key, list(unready))

        for _ in range(ATTEMPTS):
            async with _first_answer(ask, failures) as (offer, responses):
                if offer["server"]:
                    lost = asyncio.ensure_future(_until_lost(responses, failures))
                    try:
                        yield Lease(offer["name"], offer["server"], lost)
                    finally:
                        lost.cancel()
                    return
            if offer["name"] in unready:
                break  # all have refused: those are ranked last
            unready.append(offer["name"])
        raise ServerUnavailable("no server accepts requests now; try again")

    return choose


@asynccontextmanager
async def _first_answer(ask: Callable[[], Any], failures: Failures) -> AsyncIterator[tuple[dict[str, Any], Any]]:
    """Yield the first replica's answer and its responses; raise ServerUnavailable if no replica answers."""
    pending: Asked = {}
    silences: Failures = (*failures, TimeoutError, StopAsyncIteration)
    try:
        try:
            async with asyncio.timeout(LEASE_S):
                first = await _first_of(ask, pending)
            offer = first.result()
        except silences as error:
            raise ServerUnavailable(f"no server accepts requests now ({type(error).__name__}); try again") from None
        responses = pending.pop(first)
        _leave(pending)
        pending[first] = responses
        yield offer, responses
    finally:
        _leave(pending)


async def _first_of(ask: Callable[[], Any], asked: Asked) -> asyncio.Future[dict[str, Any]]:
    """Return the first successful answer, or otherwise the last failure.

    After each failure or timeout, another replica is asked, up to ATTEMPTS in all.
    """
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
    """Cancel pending requests, and ignore the errors that Ray raises for them."""
    for answer, responses in asked.items():
        answer.add_done_callback(lambda left: left.cancelled() or left.exception())
        answer.cancel()
        responses.cancel()


async def _until_lost(responses: Any, failures: Failures) -> None:
    """Return when the lease ends because its replica has ended."""
    with suppress(*failures):
        async for _ in responses:
            pass
