"""Places in vLLM's queue of waiting requests, which is served in order."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

NOBODY = nullcontext()  # one for all steps that pass nobody over, nearly all there are


def put_first(queue: RequestQueue, *requests: Request) -> None:
    """Put requests that wait at the head of the queue, in their order."""
    for request in reversed(requests):
        queue.remove_request(request)
        queue.prepend_request(request)


def put_first_behind(queue: RequestQueue, half: Request, partner: Request) -> None:
    """Put a new half ahead of all who wait for a place; behind its partner if that was preempted as it sampled."""
    queue.remove_request(half)
    ahead = list[Request]()
    while partner.status == RequestStatus.PREEMPTED and partner not in ahead:
        ahead.append(queue.pop_request())
    for request in (half, *reversed(ahead)):
        queue.prepend_request(request)


def passing_over(queue: RequestQueue, *groups: Sequence[Request]) -> AbstractContextManager[None]:
    """Serve the queue without `groups`; then they stand where they stood, behind what came into it at its head."""
    requests = [request for group in groups for request in group]
    return _without(queue, requests) if requests else NOBODY


@contextmanager
def _without(queue: RequestQueue, requests: Sequence[Request]) -> Iterator[None]:
    before = list(queue)
    queue.remove_requests(requests)
    yield
    left, old = list(queue), set(before)
    stay = {*left, *requests}
    queue.remove_requests(left)
    for request in [each for each in left if each not in old] + [each for each in before if each in stay]:
        queue.add_request(request)
