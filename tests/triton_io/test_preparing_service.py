"""The preprocessor's I/O layer answers each request once: text immediately, audio when it has been read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.disconnects import DISCONNECTS_FILE, HOST, STREAM, Disconnects
from stretto.errors import Closing, InvalidRequest, Overloaded
from stretto.records.prompt import AudioPart, Prompt, Resumption, TextPart
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.triton_io.flow import FlowTable, HeldSlots
from stretto.triton_io.preparing_service import PreparingService
from stretto.triton_io.seal import Seal
from stretto.triton_io.stub import DrainGate, is_passing
from stretto.triton_io.tensors import read_prompt, session_name
from tests.fakes_triton import Logger, Request, TritonError

ROWS = np.arange(6, dtype=np.int32).reshape(3, 2)
PROMPT = Prompt("tts", ROWS, SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.7), seed=3))
PART = TextPart("name", 3, "a word", True)
SEAL = Seal(bytes(32))


class Inputs:
    """Fake inputs of a request: `num_bytes` of audio, or an error."""

    pcm_in = session = image = None

    def __init__(self, num_bytes: int = 0, fault: Exception | None = None) -> None:
        self.num_bytes, self.fault, self.is_kept = num_bytes, fault, False

    def num_audio_bytes(self) -> int:
        return self.num_bytes

    def kept(self) -> "Inputs":
        self.is_kept = True
        return self


class Waiting:
    """Lanes that run no job until the test starts it."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, Callable[[Any], None], Callable[[Exception], None]]] = []
        self.hosts: list[str] = []
        self.is_full = False

    def submit(
        self,
        num_bytes: int,
        run: Callable[[Any], None],
        refuse: Callable[[Exception], None],
        host: str,
        is_cancelled: Callable[[], bool],
        has_images: bool,
    ) -> None:
        if self.is_full:
            raise Overloaded("audio: enough of it")
        self.hosts.append(host)
        self.jobs.append((num_bytes, run, refuse))


class Rim:
    """Service that prepares what its fake inputs describe, with its lanes and gate."""

    def __init__(self, folder: Path) -> None:
        self.path, self.lanes = folder / "draining", Waiting()
        self.readers: list[Any] = []
        self.service = PreparingService(self._prepare, self._read_part, self.lanes, SEAL, DrainGate(self.path))

    def ask(self, inputs: Inputs, stream: int = 0) -> tuple[Any, Any]:
        request = Request({}, given={HOST: "192.0.2.1", STREAM: str(stream)})
        return self.service.answer(request, lambda asked: inputs), request.sender

    def _read_part(self, inputs: Inputs) -> TextPart:
        if inputs.fault is not None:
            raise inputs.fault
        return PART

    def _prepare(self, inputs: Inputs, reader: Any = "here") -> Prompt:
        self.readers.append(reader)
        if inputs.fault is not None:
            raise inputs.fault
        return PROMPT


@pytest.fixture
def rim(tmp_path: Path) -> Rim:
    return Rim(tmp_path)


def is_the_prompt(response: Any) -> bool:
    prompt = read_prompt(Request({name: response.array(name) for name in ("rows", "prompt")}), SEAL)
    return np.array_equal(prompt.rows, ROWS) and (prompt.task, prompt.sampling) == (PROMPT.task, PROMPT.sampling)


def test_text_requests_are_answered_while_audio_waits(rim: Rim) -> None:
    later, sender = rim.ask(Inputs(num_bytes=5))
    now, _ = rim.ask(Inputs())
    assert later is None
    assert not sender.is_final
    assert is_the_prompt(now)
    assert rim.readers == ["here"]


def test_audio_request_is_answered_after_its_lane_has_read_it(rim: Rim) -> None:
    inputs = Inputs(num_bytes=5)
    _, sender = rim.ask(inputs)
    ((num_bytes, run, _),) = rim.lanes.jobs
    run("there")
    (response,) = sender.responses
    assert (num_bytes, rim.readers, sender.is_final) == (5, ["there"], True)
    assert rim.lanes.hosts == ["192.0.2.1"], "whose turn it is, the lanes see by that"
    assert inputs.is_kept, "the request's memory is gone by then"
    assert is_the_prompt(response)


@pytest.mark.parametrize("num_bytes", [0, 5])
def test_preprocessing_errors_are_answered_and_internal_ones_logged(rim: Rim, num_bytes: int) -> None:
    faults = {
        InvalidRequest("audio", "a file", "none"): (
            "invalid request: audio: expected a file, got none$",
            TritonError.INVALID_ARG,
        ),
        RuntimeError("boom"): ("failed: preprocessor: internal error [0-9a-f]{8}$", TritonError.INTERNAL),
    }
    for fault, (words, code) in faults.items():
        response, sender = rim.ask(Inputs(num_bytes, fault))
        if response is None:
            rim.lanes.jobs[-1][1]("there")
            (response,) = sender.responses
        assert re.match(words, response.error.message())
        assert response.error.code() == code
    assert len(Logger.errors) == 1


def test_requests_exceeding_the_lanes_are_refused_immediately(rim: Rim) -> None:
    rim.lanes.is_full = True
    response, sender = rim.ask(Inputs(num_bytes=5))
    assert (response.error.message(), response.error.code()) == (
        "full: audio: enough of it",
        TritonError.UNAVAILABLE,
    )
    assert sender.responses == []
    assert not is_passing(rim.path)


def test_audio_of_disconnected_clients_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Disconnects.create(tmp_path / "disconnects")
    monkeypatch.setenv(DISCONNECTS_FILE, str(tmp_path / "disconnects"))
    rim, disconnects = Rim(tmp_path), Disconnects(tmp_path / "disconnects")
    number = disconnects.next_number()
    _, sender = rim.ask(Inputs(num_bytes=5), stream=number)
    disconnects.record(number)
    rim.lanes.jobs[0][1]("there")
    assert rim.readers == []
    assert sender.responses[0].error.code() == TritonError.CANCELLED


def test_stopping_lane_refuses_waiting_requests(rim: Rim) -> None:
    _, sender = rim.ask(Inputs(num_bytes=5))
    rim.lanes.jobs[0][2](Closing("server is stopping"))
    assert sender.responses[0].error.message() == "unavailable: server is stopping"
    assert sender.is_final
    assert not is_passing(rim.path)


def test_request_counts_as_in_progress_until_answered(rim: Rim) -> None:
    rim.ask(Inputs(num_bytes=5))
    rim.ask(Inputs(num_bytes=5))
    rim.ask(Inputs())
    first, second = (run for _, run, _ in rim.lanes.jobs)
    first("there")
    assert is_passing(rim.path)
    second("there")
    assert not is_passing(rim.path)


def test_drain_gate_rejects_new_requests_and_finishes_accepted_ones(rim: Rim) -> None:
    _, sender = rim.ask(Inputs(num_bytes=5))
    rim.path.touch()
    response, _ = rim.ask(Inputs())
    assert response.error.message() == "unavailable: server is draining"
    rim.lanes.jobs[0][1]("there")
    assert sender.responses[0].error is None


def test_text_parts_are_authenticated_and_accepted_while_draining(rim: Rim) -> None:
    rim.path.touch()
    inputs = Inputs()
    inputs.session = "{}"
    response, _ = rim.ask(inputs)
    assert read_prompt(Request({"prompt": response.array("prompt")}), SEAL) == PART
    with pytest.raises(InvalidRequest, match="a record authenticated by this server"):
        read_prompt(Request({"prompt": response.array("prompt"), "rows": ROWS}), SEAL)
    inputs.fault = InvalidRequest("session.part", "an integer", "'a'")
    response, _ = rim.ask(inputs)
    assert response.error.message() == "invalid request: session.part: expected an integer, got 'a'"


class Encoder:
    """Hearing process that answers each part with one frame."""

    def __init__(self) -> None:
        self.is_open: list[Callable[[], bool]] = []

    def submit(
        self,
        session: str,
        number: int,
        pcm: np.ndarray,
        rate: int | None,
        is_last: bool,
        host: str,
        answer: Callable[[AudioPart], None],
        is_open: Callable[[], bool],
    ) -> None:
        self.is_open.append(is_open)
        answer(AudioPart(session, number, b"1234", is_last))


def test_audio_parts_are_accepted_only_for_live_sessions(tmp_path: Path) -> None:
    """Names of other or ended sessions are refused, even after a restart of the language model."""
    table, encoder = FlowTable.create(1, 4, tmp_path), Encoder()
    slots, gate = HeldSlots(1, tmp_path), DrainGate(tmp_path / "draining")
    service = PreparingService(lambda raw: PROMPT, lambda raw: PART, Waiting(), SEAL, gate, encoder, slots)

    def send(name: str, **resumes: int) -> Any:
        inputs = Inputs()
        inputs.text = inputs.audio = inputs.messages = inputs.task = inputs.options = inputs.sample_rate = None
        inputs.session = json.dumps({"id": name, "part": 0, "is_last": False} | resumes)
        request = Request({})
        return service.answer(request, lambda asked: inputs) or request.sender.responses[0]

    slot = table.claim()
    name = session_name(slot.address, SEAL)
    part = read_prompt(Request({"prompt": send(name).array("prompt")}), SEAL)
    assert part == AudioPart(name, 0, b"1234", False)
    assert encoder.is_open[0]()
    resumption = read_prompt(Request({"prompt": send(name, resume=7).array("prompt")}), SEAL)
    assert resumption == Resumption(name, 7)
    slot.release()
    assert not encoder.is_open[0]()
    for old in (name, session_name(slot.address, Seal(bytes(31) + b"1"))):
        message = send(old).error.message()
        assert message.startswith("invalid request: session.id: expected the id of an open session, got ")
    unremoved = table.claim()
    table.close()  # as after the death of its process
    table = FlowTable.create(1, 4, tmp_path)
    assert "session.id" in send(session_name(unremoved.address, SEAL)).error.message()
    assert send(session_name(table.claim().address, SEAL)).error is None
    assert len(encoder.is_open) == 2
    table.remove()
