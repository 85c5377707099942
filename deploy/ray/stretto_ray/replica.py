"""Deployment of servers: each replica owns one server and leases it to utterances."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray
from ray import serve

from stretto_ray.scaling import WAITING
from stretto_ray.server_process import ServerProcess

LONGEST_S = 3600.0  # as a gateway session; leases of a dead ingress end after this


class SpeechServer:
    """A Triton server on this replica's GPUs.

    Its audio reaches the ingress directly over gRPC, not through Ray. A Ray request is a lease, which lasts as long as
    the utterance. Ray's limits, load balancing, autoscaling and draining therefore apply to utterances.
    """

    async def __init__(self, command: Sequence[str], drain_s: float, version: str) -> None:  # type: ignore[misc]
        self._version = version  # a new version changes the deployment, so Ray replaces all servers
        self._server = ServerProcess(tuple(command), ray.util.get_node_ip_address(), drain_s)
        self._name = serve.get_replica_context().replica_id.unique_id
        try:
            await self._server.until_ready()
        except BaseException:
            self._server.stop()
            raise

    async def lease(self, key: str, refused: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        """Yield the server's name and address, and then nothing until the lease is cancelled.

        The address is empty if the server accepts no utterances now.

        Args:
            key: Key of the conversation, used by the router.
            refused: Names of servers that have refused; the router may choose one of them if there is no other.
        """
        takes_it = self._server.state() == "ready" and self._name not in refused
        server = self._server.address if takes_it else ""
        yield {"name": self._name, "server": server, "pid": self._server.pid, "version": self._version}
        if takes_it:
            await asyncio.sleep(LONGEST_S)

    def check_health(self) -> None:
        """Raise if the launcher has ended; the launcher restarts all other processes itself."""
        if self._server.has_ended:
            raise RuntimeError(f"the server's launcher has ended; see {self._server.log}")

    def record_routing_stats(self) -> dict[str, bool]:
        return {"is_ready": self._server.state() == "ready"}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {WAITING: await asyncio.to_thread(self._server.waiting_rows)}

    async def __del__(self) -> None:
        if hasattr(self, "_server"):  # the constructor got this far
            await asyncio.to_thread(self._server.stop)
