"""Guidance that is not for always: which unconditional halves go, and when they come back. A part of the scheduler.

Whatever the policy, a frame is guided by both halves or by none: what changes is whether there is a second half.

                     the engine is too slow                        the engine has time again
    guided, a pair ───────────────────────► dropped, a single one ───────────────────────────► returning
          ▲                                                                                        │
          └──── the new half has read what the old one had, and what it missed; meanwhile no frame ┘
"""

from typing import Any

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.governor import Governor
from stretto.engine.scheduling.outputs import ReplyOutputs
from stretto.engine.scheduling.replies import Reply
from stretto.streams.segment import Segment


class GuidancePolicies(ReplyOutputs):
    """Lets unconditional halves go, and takes them back, before a step is planned."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.governor = Governor(self.replies.rules.family.frame_rate)
        self.num_dropped_halves = self.num_restored_halves = 0
        # Until then the worker may still compute a step for a half that has gone, under the id that it would get again.
        self._steps_in_flight = self.vllm_config.max_concurrent_batches

    def _apply_policies(self) -> None:
        for reply in list(self.replies.limited.values()):
            if reply.next_output >= reply.limit:
                self._release_half(reply)
                self.replies.end_guidance(reply)
        self.governor.begin_step(is_counted=not self.replies.returning)
        for reply in list(self.replies.returning.values()):
            self._follow_return(reply)
        if self.replies.num_adaptive > 0 and not self.replies.returning:
            excess = self.governor.decide(len(self.running))
            if excess > 0:
                self._drop(excess)
            elif excess < 0:
                self._take_one_back()

    def _release_half(self, reply: Reply) -> None:
        """Take the unconditional half from the engine, with its blocks and its slot; `reply` goes on alone."""
        assert reply.pair is not None
        half = reply.pair.unconditional
        assert half is not None, f"{reply.request.request_id} has no half to release"
        reply.pair.part()
        self.replies.remove(half)
        self.finish_requests(half, RequestStatus.FINISHED_ABORTED)

    def _begin_guidance(self, reply: Reply) -> Request | None:
        """The youngest give way first: while older replies do without their halves, a new one begins without."""
        if reply.is_adaptive and self.replies.dropped:
            self._note_dropped(reply)
            return None
        return super()._begin_guidance(reply)

    def _note_dropped(self, reply: Reply) -> None:
        reply.dropped_at = self.current_step
        self.replies.dropped[reply.request.request_id] = reply
        self.num_dropped_halves += 1

    def _drop(self, number: int) -> None:
        """Let the halves of the `number` youngest pairs that allow it go."""
        for request in reversed(list(self.running)):
            reply = self.replies.get(request.request_id)
            if number == 0:
                break
            if reply is None or reply.params.is_unconditional or not reply.is_adaptive:
                continue
            if reply.pair is not None and reply.pair.unconditional is not None:
                self._release_half(reply)
                self._note_dropped(reply)
                self.governor.start_over()
                number -= 1

    def _take_one_back(self) -> None:
        """Let the oldest reply that has lost its half wait for a new one."""
        for request in self.running:
            reply = self.replies.dropped.get(request.request_id)
            if reply is not None and self._may_return(reply):
                del self.replies.dropped[request.request_id]
                self.replies.returning[request.request_id] = reply
                assert reply.pair is not None
                reply.pair.is_held = True
                self._steady = None
                self.governor.start_over()
                self._follow_return(reply)
                return

    def _may_return(self, reply: Reply) -> bool:
        """Whether a half is worth it: the audio goes on, nobody must give way, the worker has let the old half go."""
        request = reply.request
        needed = -(-request.num_tokens // self.block_size) + len(self.running)
        return (
            reply.tracker.segment is Segment.AUDIO
            and not request.is_prefill_chunk
            and self.current_step - reply.dropped_at > self._steps_in_flight
            and needed <= self.kv_cache_manager.block_pool.get_num_free_blocks()
        )

    def _follow_return(self, reply: Reply) -> None:
        """Create the half once all rows that it must read are known; let the pair go on once it has caught up."""
        request, pair = reply.request, reply.pair
        assert pair is not None
        if pair.unconditional is not None:
            if reply.next_output > pair.first_output or request.status != RequestStatus.RUNNING:
                del self.replies.returning[request.request_id]
        elif request.status != RequestStatus.RUNNING or reply.tracker.segment is not Segment.AUDIO:
            pair.is_held = False
            del self.replies.returning[request.request_id]
            self.replies.dropped[request.request_id] = reply
        elif request.num_output_placeholders == 0:
            pair.is_held = False
            self._put_first(self._add_unconditional(reply))
            self.num_restored_halves += 1
