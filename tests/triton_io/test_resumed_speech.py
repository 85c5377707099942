"""Resumed sessions with speech: language model and decoder in one process, and clients that lose their connections."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from stretto.config import DecoderConfig
from stretto.decoder import sessions
from stretto.decoder.worker import DecoderWorker
from stretto.disconnects import HOST
from stretto.records.chunk import Chunk, LMChunk
from stretto.records.prompt import Prompt, Resumption
from stretto.records.sampling import Delivery, OutputForm
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import make_prompt
from stretto.triton_io import live_sessions
from stretto.triton_io.chunk_sender import SenderLimits
from stretto.triton_io.decoding_service import DecodingService
from stretto.triton_io.flow import FlowTable
from stretto.triton_io.speech_service import SpeechService
from stretto.triton_io.stub import EventLoop
from stretto.triton_io.tensors import write_part
from tests.fakes import FakeCodec
from tests.fakes_triton import InferenceResponse, Request, ResponseSender
from tests.patience import PATIENCE_S, until
from tests.tiers import by_night
from tests.triton_io.live_families import SPEAKS
from tests.triton_io.sealing import SEAL, prompt_inputs

NUM_FRAMES = 60
LIMITS = SenderLimits(max_chunks=5, probe_s=0.02, poll_s=0.002, stall_s=PATIENCE_S)


class Model:
    """Fake model whose replies have random codes and chunk sizes, determined by the seed of the prompt."""

    family = SPEAKS

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.num_replies = 0

    async def generate(
        self, prompt: Prompt, request_id: str, pacer: Pacer, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        self.num_replies += 1
        chosen, number, at = np.random.default_rng(prompt.sampling.seed), 0, 0
        codes = chosen.integers(0, 8, (2, NUM_FRAMES), np.int32)
        while at < NUM_FRAMES:
            await self.may_go_on.wait()
            await asyncio.sleep(0)
            size = int(chosen.integers(0, 4))  # a chunk may have only text
            part = np.ascontiguousarray(codes[:, at : at + size]) if size else None
            yield LMChunk(Chunk(number, Segment.AUDIO, f" {number}"), part)
            number, at = number + 1, at + size
        yield LMChunk(Chunk(number, Segment.AUDIO, is_final=True), None)

    @contextmanager
    def session_place(self, host: str) -> Iterator[None]:
        yield

    def stats(self) -> dict[str, float]:
        return {}


class Client(ResponseSender):
    """Receiver of the answers of one connection, until it loses the connection."""

    def __init__(self, connection: "Connection") -> None:
        super().__init__()
        self._connection = connection

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        super().send(response, flags)
        if response is not None and not self._connection.is_lost:
            pcm = next((found for name in ("pcm", "pcm16") if (found := response.array(name)) is not None), None)
            self._connection.answers.append((json.loads(response.array("event")[0]), pcm))

    def is_cancelled(self) -> bool:
        return self._connection.is_lost


class Connection(ResponseSender):
    """Sender of the language model's responses to the decoder.

    Attributes:
        answers: Events and samples that the client has received.
        error: Error that ended the connection, or None.
    """

    def __init__(self, decoder: DecodingService) -> None:
        super().__init__()
        self._decoder, self.is_lost = decoder, False
        self.answers: list[tuple[dict, np.ndarray | None]] = []
        self.error: str | None = None

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        super().send(response, flags)
        if response is not None and response.error is None:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}
            self._decoder.accept(Request(inputs, Client(self)))
        elif response is not None:
            self.error = response.error.message()

    def is_cancelled(self) -> bool:
        return self.is_lost

    @property
    def is_complete(self) -> bool:
        return bool(self.answers) and self.answers[-1][0]["is_final"]


class Server:
    """Language model and decoder, without Triton between them."""

    def __init__(self, idle_timeout_s: float) -> None:
        self.model, self.table = Model(), FlowTable.create(1, 64)
        self.worker = DecoderWorker(FakeCodec(), DecoderConfig(idle_timeout_s=idle_timeout_s))
        self.decoder = DecodingService(self.worker, SEAL)
        self.service = SpeechService(self.model, EventLoop("test"), self.table, LIMITS, SEAL)

    def begin(self, seed: int, resume_s: float = 60.0, form: OutputForm | None = None, host: str = "") -> Connection:
        prompt = make_prompt(SPEAKS, 1, "tts")
        delivery = Delivery(form or OutputForm(), resume_s=resume_s)
        sampling = replace(prompt.sampling, seed=seed)
        return self._ask(prompt_inputs(replace(prompt, is_open=True, delivery=delivery, sampling=sampling)), host)

    def resume(self, name: str, num_events: int, ends: bool = False) -> Connection:
        (tensor,) = write_part(Resumption(name, num_events, ends), SEAL)
        return self._ask({tensor.name(): tensor.as_numpy()})

    def _ask(self, inputs: dict[str, np.ndarray], host: str = "") -> Connection:
        connection = Connection(self.decoder)
        self.service.accept(Request(inputs, connection, {HOST: host}))
        return connection

    def undisturbed(self, seed: int, form: OutputForm | None = None) -> list[tuple[dict, np.ndarray | None]]:
        return received(self.begin(seed, 0.0, form), 10_000)

    def close(self) -> None:
        self.service.close()
        self.worker.stop()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Start a server; the parameter is the time in seconds after which the decoder forgets an idle utterance."""
    made = Server(getattr(request, "param", PATIENCE_S))
    yield made
    made.close()


def refusal(connection: Connection) -> str:
    """Wait for the error of a connection, and return it."""
    until(lambda: connection.error)
    return str(connection.error)


def received(connection: Connection, count: int) -> list[tuple[dict, np.ndarray | None]]:
    """Wait for `count` events after the one with the name; return them."""
    until(lambda: len(connection.answers) > count or connection.is_complete or connection.error)
    assert connection.error is None
    assert connection.answers[0][0]["session"]
    return connection.answers[1 : 1 + count]


def check(found: list[tuple[dict, np.ndarray | None]], wanted: list[tuple[dict, np.ndarray | None]]) -> None:
    """Assert that a client has each event of an undisturbed session once, and the same samples."""
    assert len(found) == len(wanted)
    for (event, pcm), (other, expected) in zip(found, wanted, strict=True):
        for name in ("text", "start_s", "duration_s", "is_final"):
            assert event[name] == other[name]
        np.testing.assert_array_equal(
            np.zeros(0) if pcm is None else pcm, np.zeros(0) if expected is None else expected
        )
    assert len({event["utterance"] for event, _ in found}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [OutputForm(), OutputForm("pcm_s16le", 4000)], ids=["float32", "int16 at another rate"]
)
@pytest.mark.parametrize("seed", [0, 1, *by_night(2, 3, 4, 5)])
def test_session_resumed_after_random_losses_is_complete(server: Server, seed: int, form: OutputForm) -> None:
    """Events that were sent but not received are sent again; connections are lost without notice or by error."""
    rng, has = random.Random(seed), list[tuple[dict, np.ndarray | None]]()
    wanted = server.undisturbed(seed, form)
    connection = server.begin(seed, form=form)
    received(connection, 0)
    name = connection.answers[0][0]["session"]
    while True:
        has += received(connection, rng.choice([0, 1, 2, 7, 20]))
        if has and has[-1][0]["is_final"]:
            break
        connection.is_lost = rng.random() < 0.7
        connection = server.resume(name, len(has))
    check(has, wanted)
    assert server.model.num_replies == 2


def test_losing_one_session_does_not_disturb_the_other(server: Server) -> None:
    wanted = [server.undisturbed(seed) for seed in (1, 2)]
    lost, other = server.begin(1), server.begin(2)
    has = list(received(lost, 5))
    name = lost.answers[0][0]["session"]
    lost.is_lost = True
    until(lambda: lost.is_final)
    check(received(other, len(wanted[1])), wanted[1])
    has += received(server.resume(name, 5), len(wanted[0]))
    check(has, wanted[0])


def test_reply_that_ended_without_a_connection_is_kept_for_resumption(server: Server) -> None:
    """This includes its last event, which was sent when the client had just lost its connection."""
    wanted = server.undisturbed(3)
    connection = server.begin(3)
    received(connection, 10_000)
    name = connection.answers[0][0]["session"]
    has = connection.answers[1:3]
    connection.is_lost = True
    has += received(server.resume(name, 2), len(wanted))
    check(has, wanted)


@pytest.mark.parametrize("server", [0.5], indirect=True)
def test_decoder_frees_a_session_that_can_no_longer_be_resumed(server: Server) -> None:
    connection = server.begin(4, resume_s=0.05)
    received(connection, 3)
    connection.is_lost = True
    until(lambda: server.worker.stats()["open_utterances"] == 0)
    assert server.table.num_active() == 0
    late = server.resume(connection.answers[0][0]["session"], 3)
    assert "session.id: expected the id of an open session (it is kept for options.resume_s" in refusal(late)


@pytest.mark.parametrize("server", [0.5], indirect=True)
def test_client_ends_its_session_immediately(server: Server) -> None:
    """The session's permit, slot and decoder state are released at once, although it could have been resumed."""
    server.model.may_go_on.clear()
    connection = server.begin(8)
    received(connection, 0)
    ending = server.resume(connection.answers[0][0]["session"], 99, ends=True)
    assert refusal(connection) == "unavailable: the session has ended"
    until(lambda: ending.is_final)
    assert (ending.answers, ending.error) == ([], None)
    until(lambda: server.worker.stats()["open_utterances"] == 0)
    until(lambda: server.table.num_active() == 0)


def test_number_of_ended_sessions_is_limited(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_sessions, "MAX_ENDED", 2)
    names = []
    for seed in range(4):
        connection = server.begin(seed)
        received(connection, 10_000)
        until(partial(getattr, connection, "is_final"))
        names.append(connection.answers[0][0]["session"])
    until(lambda: server.table.num_active() <= 3)
    assert "expected the id of an open session" in refusal(server.resume(names[0], 1))
    received(server.resume(names[-1], 1), 1)


def test_ended_sessions_of_one_host_do_not_replace_those_of_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_sessions, "MAX_ENDED", 3)
    names = []
    for seed, host in enumerate(["a", "b", "b", "b", "b"]):
        connection = server.begin(seed, host=host)
        received(connection, 10_000)
        until(partial(getattr, connection, "is_final"))
        names.append(connection.answers[0][0]["session"])
    until(lambda: server.table.num_active() <= 4)
    assert "expected the id of an open session" in refusal(server.resume(names[1], 1))
    received(server.resume(names[0], 1), 1)


def test_invalid_resumption_is_refused_and_does_not_change_the_session(server: Server) -> None:
    """The client cannot have received more than the decoder has sent, or less than the decoder has kept."""
    wanted = server.undisturbed(5)
    connection = server.begin(5)
    has = list(received(connection, 4))
    name = connection.answers[0][0]["session"]
    for wrong in (len(wanted) + 1, 10_000):
        late = server.resume(name, wrong)
        assert "session.resume: expected a number of events in [0, " in refusal(late)
    has += received(server.resume(name, 4), len(wanted))
    check(has, wanted)


def test_session_that_the_decoder_has_lost_is_refused(server: Server) -> None:
    connection = server.begin(6)
    received(connection, 4)
    server.worker._sessions._open.clear()
    late = server.resume(connection.answers[0][0]["session"], 4)
    assert "session.resume: expected a session whose speech is still in the decoder" in refusal(late)


def test_samples_of_a_session_are_kept_up_to_a_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest samples are dropped; the error contains the range of events that can still be sent."""
    monkeypatch.setattr(sessions, "MAX_KEPT_BYTES", 2000)
    connection = server.begin(7)
    received(connection, 10_000)
    (session,) = server.worker._sessions._open.values()
    assert session.answers.oldest > 10
    assert 1500 < session.answers.num_bytes <= 2000
    late = server.resume(connection.answers[0][0]["session"], 3)
    found = f"expected a number of events in [{session.answers.oldest}, {session.answers.next}], got 3"
    assert found in refusal(late)
