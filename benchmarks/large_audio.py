"""Measure how one client's large files affect other clients.

    python -m benchmarks.large_audio --rounds 10

Short texts are sent one at a time, and the time to their first audio is measured. The arms differ in what else runs:

    alone      nothing
    busy       a process that keeps a core busy, at the priority of the uploading clients
    prepared   a client that sends files of 19 MB, which are decoded and answered
    long       a client whose files are refused as too long
    format     a client whose files are refused because their format is unknown
    corrupt    a client whose files are read up to their second half, which is corrupt
    unsound    a client whose requests are refused by the proxy and never reach Triton

The uploading client represents another machine. It is a process with the lowest priority. It sends the same bytes again
as soon as they have been answered, and neither builds nor parses anything meanwhile. The extra time of an arm over
`busy` is due to the server. The extra time of `busy` over `alone` is due to this machine. The benchmark writes one line
of JSON, which includes the cores that each server process used in each arm.
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
from tritonclient.grpc import InferInput, service_pb2
from tritonclient.grpc._utils import _get_inference_request as inference_request

from benchmarks.harness import append_result, command_line, read_usage, served_processes, serving, stop_on_sigterm
from stretto_client import SpeechClient

TEXT = "The birch canoe slid."
NICENESS = 19  # priority of clients that represent other machines
WAIT_S = 120.0
NUM_BYTES = 19_000_000
PROCESSES = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder", "audio_worker")


def wave(seconds: float, rate: int, channels: int, subtype: str) -> bytes:
    """Return a wav file that contains noise."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels)).astype(np.float32)
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format="WAV", subtype=subtype)
    return held.getvalue()


def corrupt_flac() -> bytes:
    """Return a flac file whose second half is zeros."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (NUM_BYTES // 4, 1)).astype(np.float32)
    held = io.BytesIO()
    soundfile.write(held, samples, 384_000, format="FLAC", subtype="PCM_24")
    data = held.getvalue()
    return data[: len(data) // 2] + bytes(NUM_BYTES - len(data) // 2)


FILES: dict[str, Callable[[], bytes]] = {
    "prepared": lambda: wave(0.77, 384_000, 8, "DOUBLE"),  # much to decode, and little for the models
    "long": lambda: wave(215.0, 44_100, 1, "PCM_16"),
    "format": lambda: np.random.default_rng(0).bytes(NUM_BYTES),
    "corrupt": corrupt_flac,
    "unsound": lambda: bytes(NUM_BYTES),
}
REFUSED = FILES.keys() - {"prepared", "corrupt"}


def large_request(kind: str) -> bytes:
    """Return a serialised request to transcribe a large file."""
    tensors = [InferInput("audio", [1], "BYTES"), InferInput("options", [1], "BYTES")]
    for tensor, value in zip(tensors, (FILES[kind](), b'{"seed": 1, "text": {"max_rows": 1}}'), strict=True):
        tensor.set_data_from_numpy(np.array([value], object))
    request = inference_request(
        model_name="preprocessor" if kind == "unsound" else "speech",
        inputs=tensors,
        model_version="",
        request_id="",
        outputs=None,
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=None,
    )
    return bytes(request.SerializeToString())


def keep_busy(server: str, kind: str, going: Event, resting: Event, answered: Any) -> None:
    """Keep a core busy while `going` is set."""
    lower_priority()
    while True:
        rest(going, resting)
        for _ in range(100_000):
            pass


def keep_sending(server: str, kind: str, going: Event, resting: Event, answered: Any) -> None:
    """While `going` is set, send a large file and repeat it each time it has been answered."""
    lower_priority()
    request = large_request(kind)
    channel = grpc.insecure_channel(server, [("grpc.max_send_message_length", -1)])
    ask = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    answers = [service_pb2.ModelStreamInferResponse.FromString(each) for each in ask(iter([request]))]
    is_refused = answers[0].error_message != ""
    assert is_refused == (kind in REFUSED), answers[0].error_message
    while True:
        rest(going, resting)
        for _ in ask(iter([request])):
            pass
        answered.value += 1


def lower_priority() -> None:
    """Lower the priority of this process and of its session; Linux may divide the processor by session."""
    os.setsid()
    weight = Path("/proc/self/autogroup")
    if weight.exists():
        weight.write_text(str(NICENESS))
    os.nice(NICENESS)


def rest(going: Event, resting: Event) -> None:
    """Wait until `going` is set. Keep setting `resting`, because both may change between two checks."""
    while not going.is_set():
        resting.set()
        going.wait(0.05)


class Neighbour:
    """Process that works during a turn and rests otherwise."""

    def __init__(self, run: Callable[..., None], server: str, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._going = context.Event()
        self._resting = context.Event()
        self.answered = context.Value("i", 0)
        arguments = (server, kind, self._going, self._resting, self.answered)
        self._process = context.Process(target=run, args=arguments, daemon=True)
        self._process.start()
        self._await(kind)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def _await(self, what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self._resting.wait(0.1):
            if not self._process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"{what}: the sending client has ended or gets no answer")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Make the process work for the duration of the `with` block."""
        self._resting.clear()
        self._going.set()
        try:
            yield
        finally:
            self._going.clear()
            self._await("at rest")

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()


@dataclass
class Arm:
    """An arm: its neighbour, if it has one, the first-audio times of each turn, and the total time of all turns."""

    neighbour: Neighbour | None
    turns: list[list[float]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PROCESSES, 0.0))

    def run(self, server: str, requests: int) -> None:
        """Run one turn."""
        before = processor_time()
        begun = time.monotonic()
        self.turns.append(asyncio.run(measure(server, requests)))
        self.wall_s += time.monotonic() - begun
        after = processor_time()
        for name in PROCESSES:
            self.cpu_s[name] += after[name] - before[name]


def processor_time() -> dict[str, float]:
    """Return the processor seconds used so far by each kind of process."""
    seen = dict.fromkeys(PROCESSES, 0.0)
    for name, pid in served_processes().items():
        usage = read_usage(pid)
        kind = name.partition(" ")[0]
        if usage is not None and kind in seen:
            seen[kind] += usage.cpu_s
    return seen


async def first_audio_s(client: SpeechClient) -> float:
    """Return the seconds from a request to its first samples."""
    sent = time.monotonic()
    first = None
    async for event in client.speak(TEXT, seed=1, max_audio_s=0.8):
        if event.pcm is not None and first is None:
            first = time.monotonic()
    assert first is not None
    return first - sent


async def measure(server: str, requests: int) -> list[float]:
    """Send `requests` requests one after another; return the seconds to the first audio of each."""
    async with SpeechClient(server) as client:
        return [await first_audio_s(client) for _ in range(requests)]


def take_turns(server: str, arguments: argparse.Namespace) -> dict[str, Arm]:
    """Run all arms, one turn each per round."""
    arms = {"alone": Arm(None), "busy": Arm(Neighbour(keep_busy, server, "busy"))}
    arms |= {kind: Arm(Neighbour(keep_sending, server, kind)) for kind in FILES}
    asyncio.run(measure(server, arguments.requests))  # warms up
    try:
        for _ in range(arguments.rounds):
            for arm in arms.values():
                if arm.neighbour is None:
                    arm.run(server, arguments.requests)
                    continue
                with arm.neighbour.at_work():
                    arm.run(server, arguments.requests)
    finally:
        for arm in arms.values():
            if arm.neighbour is not None:
                arm.neighbour.close()
    return arms


def report_turns(arguments: argparse.Namespace, arms: dict[str, Arm]) -> None:
    """Write the result line for all turns."""
    cores = {
        name: {process: round(cpu_s / arm.wall_s, 3) for process, cpu_s in arm.cpu_s.items()}
        for name, arm in arms.items()
    }
    rates = {
        name: round(arm.neighbour.answered.value / arm.wall_s, 2)
        for name, arm in arms.items()
        if arm.neighbour is not None and name != "busy"
    }
    figures = {"rounds": arguments.rounds, "requests_per_turn": arguments.requests}
    figures |= describe({name: arm.turns for name, arm in arms.items()}) | {"files_per_s": rates, "cores": cores}
    append_result(arguments.out, "large_audio", figures)


def describe(turns: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return percentiles of each arm's first audio, in milliseconds.

    `over_alone` and `over_busy` are percentiles of differences to these arms, between turn medians of the same round.
    """
    medians = {name: np.array([1000 * statistics.median(turn) for turn in taken]) for name, taken in turns.items()}
    record = {}
    for name, taken in turns.items():
        every = [1000 * value for turn in taken for value in turn]
        figures = {"first_audio": percentiles(every)}
        if name != "alone":
            figures["over_alone"] = percentiles(medians[name] - medians["alone"])
        if name not in ("alone", "busy"):
            figures["over_busy"] = percentiles(medians[name] - medians["busy"])
        record[name] = figures
    return {"ms": record}


def percentiles(values: Any) -> dict[str, float]:
    """Return p50 and p95 of `values`."""
    return {f"p{which}": round(float(np.percentile(values, which)), 1) for which in (50, 95)}


def main(arguments: argparse.Namespace) -> None:
    """Measure how uploads affect other clients."""
    with serving(arguments.model_repository) as server:
        report_turns(arguments, take_turns(server, arguments))


if __name__ == "__main__":
    stop_on_sigterm()
    main(
        command_line(
            __doc__,
            "large_audio",
            serves=True,
            rounds=(10, "turns of each arm"),
            requests=(10, "number of texts per turn"),
        ).parse_args()
    )
