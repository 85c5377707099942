"""Positions in vLLM's queue of waiting requests, which is served in order."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

NOBODY = nullcontext()  # shared by all steps that skip no request, which are nearly all


def put_first(queue: RequestQueue, *requests: Request) -> None:
    """Move waiting requests to the head of the queue, keeping their order."""
    for request in reversed(requests):
        queue.remove_request(request)
        queue.prepend_request(request)


def put_first_behind(queue: RequestQueue, half: Request, partner: Request) -> None:
    """Move a new unconditional request to the head, or after its partner if that was preempted while sampling."""
    queue.remove_request(half)
    ahead = list[Request]()
    while partner.status == RequestStatus.PREEMPTED and partner not in ahead:
        ahead.append(queue.pop_request())
    for request in (half, *reversed(ahead)):
        queue.prepend_request(request)


def passing_over(queue: RequestQueue, *groups: Sequence[Request]) -> AbstractContextManager[None]:
    """Return a context in which the queue is served without `groups`; they regain their positions afterwards."""
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
