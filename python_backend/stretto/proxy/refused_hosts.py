"""Client hosts that the models have just refused, because too many replies were in flight."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse

from stretto.limits import IN_FLIGHT
from stretto.proxy.access import ENSEMBLE
from stretto.proxy.infer_request import FULL, BadRequest

MAX_HOSTS = 1024
FORGET_S = 1.0  # a reply of Triton's HTTP service, or of a client that asks for no final flags, ends unseen
REFUSAL = re.compile(rf"{FULL}: (\d+ {IN_FLIGHT}.*)", re.DOTALL)
# Parameter of a reply's last response (grpc_service.proto): an entry of a map, whose value is a bool.
IS_FINAL = b"\n\x15triton_final_response\x12\x02\x08\x01"


@dataclass(slots=True)
class Refusal:
    """A host's last refusal by the models.

    Attributes:
        message: The models' message.
        since_s: Monotonic time of the refusal, in seconds.
        num_tries: Number of requests that may be sent to the models nevertheless, because as many replies have ended.
    """

    message: str
    since_s: float
    num_tries: int = 0


class RefusedHosts:
    """Hosts whose further requests the proxy refuses: all but one for each reply, of any host, that ends.

    The models would refuse these requests as well, after more work: a refusal by the models takes about 10 ms of
    processor time, and a flood of clients that try again would take it from the replies of all others.

    Args:
        now: Returns the monotonic time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._refusals: dict[str, Refusal] = {}  # of each host

    def check(self, head: ModelInferRequest, host: str) -> None:
        """Raise BadRequest if the request would begin a reply, and its host has just been refused.

        Args:
            head: The request, without tensor contents.
            host: Host of the client.
        """
        begins_reply = head.model_name == ENSEMBLE and all(tensor.name != "session" for tensor in head.inputs)
        refusal = self._refusals.get(host)
        if refusal is None or not begins_reply:
            return
        if self._now() - refusal.since_s >= FORGET_S:
            del self._refusals[host]
        elif refusal.num_tries:
            refusal.num_tries -= 1
        else:
            raise BadRequest(refusal.message, head.id, FULL)

    def note(self, host: str, response: bytes) -> None:
        """Record a host's refusal, or the end of a reply.

        Args:
            host: Host of the client.
            response: Serialised ModelStreamInferResponse of the models.
        """
        if IN_FLIGHT.encode() in response:
            error = ModelStreamInferResponse.FromString(response).error_message
            if found := REFUSAL.search(error):
                last = self._refusals.pop(host, None)
                if len(self._refusals) == MAX_HOSTS:
                    self._refusals.clear()
                self._refusals[host] = Refusal(found[1], self._now(), last.num_tries if last else 0)
                return
        if self._refusals and IS_FINAL in response:
            for refusal in self._refusals.values():
                refusal.num_tries += 1
