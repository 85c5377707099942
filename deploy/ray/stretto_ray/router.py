"""The request router of Ray Serve that `affinity` decides for."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from stretto_ray.affinity import Candidate, ranked
from stretto_ray.unanswered import Unanswered


class AffinityRouter(RequestRouter):
    """Takes the key of a request and whom it is not to meet from its first two arguments (`SpeechServer.lease`)."""

    def initialize_state(self, free: int = 8, **_: Any) -> None:
        self._free = free
        self._unanswered = Unanswered()

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A replica is asked for a lease."""
        self._unanswered.sent(replica_id.unique_id)
        super().on_send_request(replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """It has said whether it takes the request, and how many it has."""
        self._unanswered.answered(replica_id.unique_id)
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """A rank for each, in the order of `ranked`."""
        key, refused = ("", ())
        if pending_request is not None:
            key, refused = pending_request.args
            pending_request.routing_context.should_backoff = (
                True  # or else Ray asks again at once, and does nothing else
            )
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        candidates = [
            Candidate(
                name,
                self.replica_queue_len_cache.get(replica.replica_id) or 0,
                bool(replica.routing_stats.get("is_ready", True)) and not self._unanswered.is_late(name),
            )
            for name, replica in named.items()
        ]
        return [[named[name]] for name in ranked(key, candidates, refused, self._free)]
