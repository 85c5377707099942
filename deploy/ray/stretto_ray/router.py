"""The request router of Ray Serve that `affinity` decides for."""

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from stretto_ray.affinity import Candidate, ranked


class AffinityRouter(RequestRouter):
    """Takes the key of a request and whom it is not to meet from its first two arguments (`SpeechServer.lease`)."""

    def initialize_state(self, free: int = 8, **_: Any) -> None:
        self._free = free

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """A rank for each, in the order of `ranked`; none of those that are not ready."""
        key, refused = pending_request.args if pending_request is not None else ("", ())
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        candidates = [
            Candidate(
                name,
                self.replica_queue_len_cache.get(replica.replica_id) or 0,
                bool(replica.routing_stats.get("is_ready", True)),
            )
            for name, replica in named.items()
        ]
        return [[named[name]] for name in ranked(key, candidates, refused, self._free)]
