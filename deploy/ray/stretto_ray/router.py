"""The request router of Ray Serve that `affinity` decides for."""

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from stretto_ray.affinity import Candidate, ranked
from stretto_ray.unanswered import Unanswered


class AffinityRouter(RequestRouter):
    """Takes the key of a request and whom it is not to meet from its first two arguments (`SpeechServer.lease`)."""

    def initialize_state(self, free: int = 8, **_: Any) -> None:
        self._free = free
        self._unanswered = Unanswered()
        self._leases = Counter[str]()  # of this router; Ray's own figure is late where many begin and end at once

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A replica is asked for a lease."""
        self._unanswered.sent(replica_id.unique_id)
        self._leases[replica_id.unique_id] += 1
        super().on_send_request(replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """It has said whether it takes the request, and how many it has."""
        self._unanswered.answered(replica_id.unique_id)
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A lease is over, or was not given."""
        self._leases[replica_id.unique_id] = max(0, self._leases[replica_id.unique_id] - 1)
        super().on_request_completed(replica_id, internal_request_id)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """A rank for each, in the order of `ranked`."""
        key, refused = ("", ())
        if pending_request is not None:
            key, refused = pending_request.args
            pending_request.routing_context.should_backoff = True  # without it, Ray asks again at once and for ever
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
