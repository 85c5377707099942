"""Ray Serve request router that ranks replicas by `affinity`."""

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from stretto_gateway.affinity import Candidate, ranked
from stretto_ray.unanswered import Unanswered


class AffinityRouter(RequestRouter):
    """Router by conversation; the key and the refusals are the first two arguments of `SpeechServer.lease`."""

    def initialize_state(self, free: int = 8, **_: Any) -> None:
        self._free = free
        self._unanswered = Unanswered()
        self._leases = Counter[str]()  # leases of this router; Ray's own count lags when many begin and end at once

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a lease that is requested from a replica."""
        self._unanswered.sent(replica_id.unique_id)
        self._leases[replica_id.unique_id] += 1
        super().on_send_request(replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Record that a replica has answered, with its number of requests."""
        self._unanswered.answered(replica_id.unique_id)
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a lease that has ended or was refused."""
        self._leases[replica_id.unique_id] = max(0, self._leases[replica_id.unique_id] - 1)
        super().on_request_completed(replica_id, internal_request_id)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return all replicas in the order of `ranked`, each in its own rank."""
        key = ""
        refused = ()
        if pending_request is not None:
            key, refused = pending_request.args
            pending_request.routing_context.should_backoff = True  # otherwise Ray retries immediately and forever
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        candidates = [
            Candidate(
                name,
                max(self._leases[name], self.replica_queue_len_cache.get(replica.replica_id) or 0),
                bool(replica.routing_stats.get("is_ready", True)) and not self._unanswered.is_late(name),
            )
            for name, replica in named.items()
        ]
        return [[named[name]] for name in ranked(key, candidates, refused, self._free)]
