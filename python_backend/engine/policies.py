"""Guidance that is not for always: which unconditional halves go, and when. A part of the scheduler.

Whatever the policy, a frame is guided by both halves or by none: what changes is whether there is a second half.
"""

from vllm.v1.request import RequestStatus

from python_backend.engine.outputs import ReplyOutputs
from python_backend.engine.replies import Reply


class GuidancePolicies(ReplyOutputs):
    """Lets unconditional halves go before a step is planned."""

    def _apply_policies(self) -> None:
        for reply in list(self.replies.limited.values()):
            if reply.next_output >= reply.limit:
                self._release_half(reply)
                self.replies.end_guidance(reply)

    def _release_half(self, reply: Reply) -> None:
        """Take the unconditional half from the engine, with its blocks and its slot; `reply` goes on alone."""
        assert reply.pair is not None
        half = reply.pair.unconditional
        assert half is not None, f"{reply.request.request_id} has no half to release"
        reply.pair.part()
        self.replies.remove(half)
        self.finish_requests(half, RequestStatus.FINISHED_ABORTED)
