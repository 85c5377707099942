"""Guidance that is not for always, `until_s` and `adaptive`: which unconditional halves go, which come back.

Whatever the policy, a frame is guided by both halves or by none: what changes is whether there is a second half.

                     the engine is too slow                        the engine has time again
    guided, a pair ───────────────────────► dropped, a single one ───────────────────────────► returning
          ▲                                                                                        │
          └──── the new half has read what the old one had, and what it missed; meanwhile no frame ┘
"""

from collections.abc import Sequence
from typing import NamedTuple

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable
from stretto.engine.scheduling.step_load import StepLoad
from stretto.streams.segment import Segment


class GuidanceChanges(NamedTuple):
    """The requests whose unconditional halves go before a step, and those that get new ones."""

    dropped: Sequence[RequestState] = ()
    restored: Sequence[RequestState] = ()


UNCHANGED = GuidanceChanges()


class AdaptiveGuidance:
    """Says which unconditional halves go and come back, by load or for good (`until_s`), before a step is planned.

    limited: requests whose guidance ends before they do and has not ended yet. adaptive: those whose guidance may come
    and go; dropped: those of them without a half, and at which step each lost it; returning: those about to get one.
    lag: so many steps the worker may still compute for a half that has gone, under the id that the next one gets.
    """

    def __init__(self, table: RequestTable, blocks: KvBlocks, load: StepLoad, lag: int):
        self._table, self._blocks, self._lag = table, blocks, lag
        self.load = load
        self.limited: dict[str, RequestState] = {}
        self.adaptive: set[str] = set()
        self.dropped: dict[str, int] = {}
        self.returning: dict[str, int] = {}
        self.num_dropped = self.num_restored = 0

    def add(self, state: RequestState) -> None:
        """A request has arrived."""
        if state.pair is None:
            return
        if state.params.sampling.policy == "until_s":
            self.limited[state.request.request_id] = state
        elif state.is_adaptive:
            self.adaptive.add(state.request.request_id)

    def remove(self, request_id: str) -> None:
        """A request has ended."""
        self.adaptive.discard(request_id)
        for some in (self.limited, self.dropped, self.returning):
            some.pop(request_id, None)

    def ended(self) -> list[RequestState]:
        """The requests that have been guided for as long as they asked."""
        ended = [state for state in self.limited.values() if state.next_output >= state.limit]
        for state in ended:
            del self.limited[state.request.request_id]
        return ended

    def begins(self, state: RequestState, step: int) -> bool:
        """Whether a request at its audio segment gets its half: while older ones do without, a new one begins without.

        The youngest give way first.
        """
        if not state.is_adaptive or not self.dropped:
            return True
        self._note_dropped(state, step)
        return False

    def _note_dropped(self, state: RequestState, step: int) -> None:
        self.dropped[state.request.request_id] = step
        self.num_dropped += 1

    def change(self, running: Sequence[Request], step: int) -> GuidanceChanges:
        """What changes before `step`: by how slow the last ones were, and by who is ready for a new half."""
        self.load.begin_step(is_counted=not self.returning)
        if not self.adaptive:
            return UNCHANGED
        restored = [state for state in map(self._table.__getitem__, list(self.returning)) if self._follow(state)]
        if self.returning:
            return GuidanceChanges(restored=restored)
        excess = self.load.excess(len(running))
        if excess > 0:
            return GuidanceChanges(dropped=self._drop(excess, running, step))
        return GuidanceChanges(restored=self._take_one_back(running, step) if excess < 0 else ())

    def end_schedule(self, num_rows: int) -> None:
        """So many rows have been scheduled."""
        self.load.end_schedule(num_rows)

    def _follow(self, state: RequestState) -> bool:
        """Follow a request on its way back; whether all rows are known that its new half must read."""
        request, pair = state.request, state.pair
        assert pair is not None
        if pair.unconditional is not None:
            if state.next_output > pair.first_output or request.status != RequestStatus.RUNNING:
                del self.returning[request.request_id]
            return False
        if request.status != RequestStatus.RUNNING or state.tracker.segment is not Segment.AUDIO:
            self._table.stop_awaiting(state)
            self.dropped[request.request_id] = self.returning.pop(request.request_id)
            return False
        is_known = request.num_output_placeholders == 0
        self.num_restored += is_known
        return is_known

    def _drop(self, number: int, running: Sequence[Request], step: int) -> list[RequestState]:
        """The `number` youngest pairs that allow it lose their halves."""
        dropped = list[RequestState]()
        for request in reversed(running):
            if len(dropped) == number:
                break
            state = self._table[request.request_id]
            if state.is_unconditional or not state.is_adaptive:
                continue
            if state.pair is not None and state.pair.unconditional is not None:
                dropped.append(state)
                self._note_dropped(state, step)
                self.load.start_over()
        return dropped

    def _take_one_back(self, running: Sequence[Request], step: int) -> list[RequestState]:
        """Let the oldest request that has lost its half wait for a new one; it may be ready for it."""
        for request in running:
            dropped_at = self.dropped.get(request.request_id)
            if dropped_at is None or step - dropped_at <= self._lag:
                continue
            state = self._table[request.request_id]
            if self._is_worth_it(state, len(running)):
                self.returning[request.request_id] = self.dropped.pop(request.request_id)
                self._table.await_half(state)
                self.load.start_over()
                return [state] if self._follow(state) else []
        return []

    def _is_worth_it(self, state: RequestState, num_running: int) -> bool:
        """Whether the audio goes on, and nobody must give way to a new half."""
        return (
            state.tracker.segment is Segment.AUDIO
            and not state.request.is_prefill_chunk
            and self._blocks.needed(state.request.num_tokens) + num_running <= self._blocks.num_free()
        )
