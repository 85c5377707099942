"""Replicas: equal servers of one model. Each utterance is sent to the least busy server."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from stretto_client import ServerFull, ServerUnavailable, SpeechClient
from stretto_gateway.affinity import Candidate, ranked
from stretto_gateway.routed import Lease

CHECK_S = 1.0  # time between two checks of a replica
ANSWER_S = 5.0  # maximum duration of a check
FREE = 8  # utterances below which a replica keeps its conversations at any load of the others


class Replicas:
    """The replicas, with the number of utterances of each.

    They must be created and closed inside the event loop.
    """

    def __init__(self, addresses: Sequence[str], registry: CollectorRegistry):
        self._clients = {address: SpeechClient(address) for address in addresses}
        self._loads = Counter[str]()
        self._is_ready = dict.fromkeys(addresses, True)  # until the first check, all replicas are tried
        loop = asyncio.get_running_loop()
        self._checks = [loop.create_task(self._check_always(address)) for address in addresses]
        self._never = loop.create_future()  # the connection itself reports that a replica is lost
        ready = Gauge("gateway_replica_ready", "1 if a replica is ready", ["replica"], registry=registry)
        active = Gauge("gateway_replica_active", "Utterances of a replica", ["replica"], registry=registry)
        for address in addresses:
            ready.labels(address).set_function(partial(self._is_ready.__getitem__, address))
            active.labels(address).set_function(partial(self._loads.__getitem__, address))

    @property
    def clients(self) -> tuple[SpeechClient, ...]:
        """A client of each replica."""
        return tuple(self._clients.values())

    @asynccontextmanager
    async def choose(self, key: str, refused: tuple[str, ...]) -> AsyncIterator[Lease]:
        """Lease a replica during the `with` block; raise ServerUnavailable if all have refused the utterance.

        Args:
            key: Key of the conversation, whose turns use one replica as long as it is not much busier than the others;
                empty for an utterance that may use any.
        """
        candidates = [
            Candidate(address, self._loads[address], is_ready) for address, is_ready in self._is_ready.items()
        ]
        address = ranked(key, candidates, refused, FREE)[0]
        if address in refused:
            raise ServerUnavailable("no replica accepts requests now; try again")
        self._loads[address] += 1
        try:
            yield Lease(address, address, self._never)
        except ServerFull:
            raise
        except ServerUnavailable:
            self._is_ready[address] = False  # counts as not ready until the next check
            raise
        finally:
            self._loads[address] -= 1

    async def close(self) -> None:
        """End the checks, and close the clients."""
        for check in self._checks:
            check.cancel()
        await asyncio.wait(self._checks)
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def _check_always(self, address: str) -> None:
        while True:
            is_ready = False
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    is_ready = await self._clients[address].ready()
            self._is_ready[address] = is_ready
            await asyncio.sleep(CHECK_S)
