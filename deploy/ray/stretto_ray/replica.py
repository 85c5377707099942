"""The deployment of servers: each replica owns one, and lends it to one utterance after the other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray
from ray import serve

from stretto_ray.scaling import WAITING
from stretto_ray.server_process import ServerProcess

LONGEST_S = 3600.0  # as a session of the gateway's; the lease of an ingress that died ends with it


class SpeechServer:
    """A Triton server on this replica's GPUs. What it says goes from server to ingress past Ray, over gRPC.

    A request of Ray's is a lease: it lasts as long as the utterance, so that Ray counts, limits, spreads, scales by
    and waits for utterances.
    """

    async def __init__(self, command: Sequence[str], drain_s: float, version: str) -> None:  # type: ignore[misc]
        self._version = version  # another one makes another deployment of it: Ray replaces all servers
        self._server = ServerProcess(tuple(command), ray.util.get_node_ip_address(), drain_s)
        self._name = serve.get_replica_context().replica_id.unique_id
        try:
            await self._server.until_ready()
        except BaseException:
            self._server.stop()
            raise

    async def lease(self, key: str, refused: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        """Who this is, and where it listens: '' where it takes nothing now. Then nothing, until the lease is cancelled.

        key, refused: what the router has chosen by, who asks for one that has refused where there is no other.
        """
        takes_it = self._server.state() == "ready" and self._name not in refused
        server = self._server.address if takes_it else ""
        yield {"name": self._name, "server": server, "pid": self._server.pid, "version": self._version}
        if takes_it:
            await asyncio.sleep(LONGEST_S)

    def check_health(self) -> None:
        """Raise where the launcher is gone. It starts again by itself what else ends."""
        if self._server.has_ended:
            raise RuntimeError(f"the server's launcher has ended; see {self._server.log}")

    def record_routing_stats(self) -> dict[str, bool]:
        """What the router is told."""
        return {"is_ready": self._server.state() == "ready"}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler is told."""
        return {WAITING: await asyncio.to_thread(self._server.waiting_rows)}

    async def __del__(self) -> None:
        if hasattr(self, "_server"):  # it was made
            await asyncio.to_thread(self._server.stop)
