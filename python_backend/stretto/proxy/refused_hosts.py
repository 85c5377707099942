"""Client hosts that the models have just refused, because too many replies were in flight."""

import re
import time
from collections.abc import Callable, Set
from dataclasses import dataclass

from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse

from stretto.errors import FULL
from stretto.proxy.infer_request import MAX_ID, BadRequest
from stretto_contract.limits import IN_FLIGHT

MAX_HOSTS = 1024
# The proxy does not see when a client reads slowly or a reply waits for text. Such a reply gives up its permit
# before it ends.
PROBE_S = 0.1
FORGET_S = 1.0
# The entire message, so that text of a client, which other errors repeat, cannot imitate it.
REFUSAL = re.compile(
    rf"(?:\[request id: [^]]{{0,{MAX_ID}}}\] )?(?:in ensemble '\w+', )?{FULL}: (\d+ {IN_FLIGHT}[\w ,.:;()+-]*)"
)
# Parameter of a reply's last response (grpc_service.proto): an entry of a map, whose value is a bool.
IS_FINAL = b"\n\x15triton_final_response\x12\x02\x08\x01"


@dataclass(slots=True)
class Refusal:
    """A host's last refusal by the models; times are monotonic.

    Attributes:
        since_s: Time of the refusal.
        tried_s: Time of the last request that was sent to the models nevertheless.
        num_tries: Number of requests that may be sent to the models, because as many replies have ended.
    """

    message: str
    since_s: float
    tried_s: float
    num_tries: int = 0


class RefusedHosts:
    """Client hosts of which the models refused a request less than FORGET_S ago.

    The proxy sends the models one further request of such a host for each reply that ends, of any host, and one every
    PROBE_S. It refuses the others, which the models would refuse, too, after more work: a refusal by the models takes
    about 10 ms of processor time. Clients that try again often would take this time from the replies of all others.

    Args:
        ensembles: Names of the ensembles, whose requests begin replies.
    """

    def __init__(self, ensembles: Set[str], now: Callable[[], float] = time.monotonic) -> None:
        self._ensembles = ensembles
        self._now = now
        self._refusals: dict[str, Refusal] = {}  # last refusal by host

    def check(self, head: ModelInferRequest, host: str) -> None:
        """Raise BadRequest if the request would begin a reply, and its host has just been refused."""
        refusal = self._refusals.get(host)
        now = self._now()
        if refusal is None or not self._begins_reply(head):
            return
        if now - refusal.since_s >= FORGET_S:
            del self._refusals[host]
        elif refusal.num_tries:
            refusal.num_tries -= 1
        elif now - refusal.tried_s >= PROBE_S:
            refusal.tried_s = now
        else:
            raise BadRequest(refusal.message, head.id, FULL)

    def note(self, host: str, response: bytes) -> None:
        """Record a host's refusal, or the end of a reply, from the ensemble's serialised ModelStreamInferResponse."""
        if IN_FLIGHT.encode() in response:
            error = ModelStreamInferResponse.FromString(response).error_message
            if match := REFUSAL.fullmatch(error):
                last = self._refusals.pop(host, None)
                now = self._now()
                if len(self._refusals) == MAX_HOSTS:
                    self._refusals.clear()
                tried_s, num_tries = (last.tried_s, last.num_tries) if last else (now, 0)
                self._refusals[host] = Refusal(match[1], now, tried_s, num_tries)
                return
        if self._refusals and IS_FINAL in response:
            for refusal in self._refusals.values():
                refusal.num_tries += 1

    def _begins_reply(self, head: ModelInferRequest) -> bool:
        """Return True if a request begins a reply, and does not continue a session."""
        return head.model_name in self._ensembles and all(tensor.name != "session" for tensor in head.inputs)
