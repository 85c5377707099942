"""Sleep of an idle server: the requests in flight, and those that wait until the server is awake.

The launcher stops Triton while the server sleeps, so all its memory is free. The proxy still accepts requests.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import Enum, auto

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.errors import FULL, UNAVAILABLE
from stretto.proxy.infer_request import BadRequest
from stretto.proxy.last_answers import LastAnswers
from stretto.proxy.messages import ASLEEP, IDLE, READY, STOPPING, WAKE, WAKE_FAILED
from stretto_contract.limits import FairLimit

CHECK_S = 0.25
REACH_S = 5.0  # wait for Triton's socket, before the next attempt
MAX_WAITING_BYTES = 256 << 20
LEAST_BYTES = 256 << 10  # counted for a smaller request, so at most 1024 requests wait
FAILED = "the idle server could not start again, its log has the reason; try again"
STOPS = "the server is stopping"


class State(Enum):
    """State of the server, which decides whether a new request is forwarded or waits.

    Only the launcher's message `ASLEEP` ends TIRED: until then, Triton may end at any time.
    """

    AWAKE = auto()  # forwarded
    TIRED = auto()  # waits: the idle state was reported to the launcher
    ASLEEP = auto()  # waits, and wakes the server
    WAKING = auto()  # waits: the launcher has started Triton, which is not yet reached
    FAILED = auto()  # refused: Triton could not be started


class Sleep:
    """Decides when the server falls asleep, and makes requests wait until it is awake.

    Nothing is awaited between the check that no request is in flight and the change of the state. A request is
    therefore either counted before, and keeps the server awake, or waits until the server is awake again.

    Args:
        idle_s: Time without a request after which the server falls asleep; 0 for never.
        report: Sends a message to the launcher.
        clock: Monotonic time, in seconds.
    """

    def __init__(
        self,
        idle_s: float = 0.0,
        report: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_s = idle_s
        self._report = report
        self._clock = clock
        self._state = State.AWAKE
        self._num_active = 0
        self._since = clock()
        self._answers: LastAnswers | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._waiting_bytes = FairLimit(MAX_WAITING_BYTES)
        self._has_called = False

    @property
    def is_possible(self) -> bool:
        return self._idle_s > 0

    @property
    def is_awake(self) -> bool:
        """True if requests are forwarded."""
        return self._state is State.AWAKE

    @property
    def accepts_requests(self) -> bool:
        """True if requests are forwarded or wait; False after a failed start."""
        return self._state is not State.FAILED

    @property
    def is_idle(self) -> bool:
        """True if no request has been in flight for `idle_s`."""
        is_quiet = self.is_possible and self.is_awake and not self._num_active
        return is_quiet and self._clock() - self._since >= self._idle_s

    async def enter(self, num_bytes: int, host: str, slot: ExitStack) -> None:
        """Wait until the server is awake, and count a request as in flight until `slot` is closed.

        If too much is waiting already, the server cannot be started, or it stops, raise BadRequest.
        """
        while not self.is_awake:
            await self._await_start(max(num_bytes, LEAST_BYTES), host)
        self._num_active += 1
        slot.callback(self._leave)

    def _leave(self) -> None:
        self._num_active -= 1
        self._since = self._clock()

    async def _await_start(self, num_bytes: int, host: str) -> None:
        if self._state is State.FAILED:
            raise BadRequest(FAILED, category=UNAVAILABLE)
        if not self._waiting_bytes.has_free(host, num_bytes):
            raise BadRequest("this host has reached its share of requests that wait for the server", category=FULL)
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        self._waiting_bytes.acquire(host, num_bytes)
        try:
            self._call()
            await waiting
        finally:
            self._waiting.discard(waiting)
            self._waiting_bytes.release(host, num_bytes)

    def _call(self) -> None:
        """Ask the launcher, once in each sleep, to start Triton."""
        if not self._has_called:
            self._has_called = True
            self._report(WAKE)

    def fall_asleep(self, answers: LastAnswers) -> None:
        """Report to the launcher that the server is idle, unless a request has arrived in the meantime."""
        if self.is_idle:
            self._answers = answers
            self._state = State.TIRED
            self._has_called = False
            self._report(IDLE)

    def apply(self, message: str) -> None:
        """Change the state as a message of the launcher requires.

        Messages about faults of Triton matter only while the server is awake.
        """
        if message == ASLEEP:
            self._state = State.ASLEEP
        elif message == WAKE_FAILED:
            self._state = State.FAILED
            self._has_called = False
            self._refuse_waiting(FAILED)
        elif message == STOPPING:
            self._refuse_waiting(STOPS)
        elif message == READY and self.is_awake:
            self._since = self._clock()
        elif message == READY and self._state is not State.TIRED:
            self._state = State.WAKING

    def _refuse_waiting(self, reason: str) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(BadRequest(reason, category=UNAVAILABLE))

    def open(self) -> None:
        """Release the waiting requests, because Triton answers."""
        if self._state is not State.WAKING:
            return
        self._state = State.AWAKE
        self._since = self._clock()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def answer(self, method: str, request: Message) -> bytes:
        """Return the serialised response to a call in `REMEMBERED` while the server is not awake.

        If the call names an unknown model, or the answers are lost and Triton is being started, raise BadRequest.
        """
        if self._answers is None:
            raise BadRequest("the server is starting", category=UNAVAILABLE)
        return self._answers.answer(method, request)

    async def watch(self, triton: grpc.aio.Channel, is_ready: Callable[[], bool]) -> None:
        """Let the idle server fall asleep, and wake it, until cancelled."""
        while self.is_possible:
            await asyncio.sleep(CHECK_S)
            with suppress(grpc.aio.AioRpcError):  # the next check tries again
                if self._state is State.ASLEEP and self._answers is None:
                    self._call()  # a restarted proxy has no answers; only Triton has them
                elif self._state is State.WAKING:
                    await reach(triton)
                    self.open()
                elif self.is_idle and is_ready():
                    answers = await LastAnswers.fetch(triton)
                    if is_ready():
                        self.fall_asleep(answers)


async def reach(triton: grpc.aio.Channel) -> None:
    """Wait for a connection to a Triton that has just started; raise AioRpcError if there is none in time."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(triton)
    await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=REACH_S, wait_for_ready=True)
