"""What large files of one client cost everybody else: first audio of short texts, one after the other, in turns

    alone      with nothing beside them
    busy       beside a process that does nothing but keep a core busy, at the priority of the clients below
    prepared   beside a client that sends files of 19 MB, which are read and answered
    long       beside one whose files are refused, for they are too long
    format     beside one whose files are refused, for they are none of a known format
    corrupt    beside one whose files are refused, for their second half is none
    unsound    beside one whose requests the proxy refuses, and Triton never sees

    python -m benchmarks.large_audio --rounds 10

A client that sends stands for another machine: it is a process of the lowest priority that sends the same bytes again
as soon as they have been answered, and neither builds nor reads anything meanwhile. What an arm takes longer than
`busy` is the server's; what `busy` takes longer than `alone` is this machine's. One line of JSON, with the cores that
each process of the server took in each arm.
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

from benchmarks.process_watch import read_usage, served_processes
from benchmarks.results_file import append_result
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm
from stretto_client import SpeechClient

TEXT = "The birch canoe slid."
NICENESS = 19  # of what stands for other machines
WAIT_S = 120.0
NUM_BYTES = 19_000_000
PROCESSES = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder", "audio_worker")


def wave(seconds: float, rate: int, channels: int, subtype: str) -> bytes:
    """A wav file of noise."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels)).astype(np.float32)
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format="WAV", subtype=subtype)
    return held.getvalue()


def flac_that_breaks_off() -> bytes:
    """A flac file whose second half is none."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (NUM_BYTES // 4, 1)).astype(np.float32)
    held = io.BytesIO()
    soundfile.write(held, samples, 384_000, format="FLAC", subtype="PCM_24")
    data = held.getvalue()
    return data[: len(data) // 2] + bytes(NUM_BYTES - len(data) // 2)


FILES: dict[str, Callable[[], bytes]] = {
    "prepared": lambda: wave(0.77, 384_000, 8, "DOUBLE"),  # much to read, and little for the models
    "long": lambda: wave(215.0, 44_100, 1, "PCM_16"),
    "format": lambda: np.random.default_rng(0).bytes(NUM_BYTES),
    "corrupt": flac_that_breaks_off,
    "unsound": lambda: bytes(NUM_BYTES),
}
REFUSED = FILES.keys() - {"prepared"}


def large_request(kind: str) -> bytes:
    """A request for a transcript of a large file, as it goes over the wire."""
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
    """Take a core's time while it is `going`."""
    give_way()
    while True:
        rest(going, resting)
        for _ in range(100_000):
            pass


def keep_sending(server: str, kind: str, going: Event, resting: Event, answered: Any) -> None:
    """Send a large file again and again while it is `going`, each when the last has been answered."""
    give_way()
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


def give_way() -> None:
    """Leave the processor to the server: where Linux shares it among sessions first, by a session of little weight."""
    os.setsid()
    weight = Path("/proc/self/autogroup")
    if weight.exists():
        weight.write_text(str(NICENESS))
    os.nice(NICENESS)


def rest(going: Event, resting: Event) -> None:
    """Wait where it is not `going`, and say so meanwhile: again and again, for it may go and rest between two looks."""
    while not going.is_set():
        resting.set()
        going.wait(0.05)


class Neighbour:
    """A process that does something beside the texts while it is told to."""

    def __init__(self, run: Callable[..., None], server: str, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._going, self._resting = context.Event(), context.Event()
        self.answered = context.Value("i", 0)
        arguments = (server, kind, self._going, self._resting, self.answered)
        self._process = context.Process(target=run, args=arguments, daemon=True)
        self._process.start()
        self._await(kind)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process.pid is not None
        return self._process.pid

    def _await(self, what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self._resting.wait(0.1):
            if not self._process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"{what}: the client that sends has ended, or is not answered")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """It works; at the end it rests."""
        self._resting.clear()
        self._going.set()
        try:
            yield
        finally:
            self._going.clear()
            self._await("at rest")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()


@dataclass
class Arm:
    """One neighbour, or none; for each turn the first audio of its texts, and what all turns together took."""

    neighbour: Neighbour | None
    turns: list[list[float]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PROCESSES, 0.0))

    def take(self, server: str, requests: int) -> None:
        """A turn."""
        before, begun = processor_time(), time.monotonic()
        self.turns.append(asyncio.run(measure(server, requests)))
        self.wall_s += time.monotonic() - begun
        after = processor_time()
        for name in PROCESSES:
            self.cpu_s[name] += after[name] - before[name]


def processor_time() -> dict[str, float]:
    """Seconds of processor time of each kind of process so far."""
    seen = dict.fromkeys(PROCESSES, 0.0)
    for name, pid in served_processes(os.getpid()).items():
        usage, kind = read_usage(pid, 0.0), name.partition(" ")[0]
        if usage is not None and kind in seen:
            seen[kind] += usage.cpu_s
    return seen


async def first_audio_s(client: SpeechClient) -> float:
    """Seconds from a request to its first samples."""
    asked, heard = time.monotonic(), None
    async for event in client.speak(TEXT, seed=1, max_audio_s=0.8):
        if event.pcm is not None and heard is None:
            heard = time.monotonic()
    assert heard is not None
    return heard - asked


async def measure(server: str, requests: int) -> list[float]:
    """First audio of so many requests, one after the other."""
    async with SpeechClient(server) as client:
        return [await first_audio_s(client) for _ in range(requests)]


def take_turns(server: str, arguments: argparse.Namespace) -> dict[str, Arm]:
    """All arms, each a turn in each round."""
    arms = {"alone": Arm(None), "busy": Arm(Neighbour(keep_busy, server, "busy"))}
    arms |= {kind: Arm(Neighbour(keep_sending, server, kind)) for kind in FILES}
    asyncio.run(measure(server, arguments.requests))  # the first requests of all warm up
    try:
        for _ in range(arguments.rounds):
            for arm in arms.values():
                if arm.neighbour is None:
                    arm.take(server, arguments.requests)
                    continue
                with arm.neighbour.at_work():
                    arm.take(server, arguments.requests)
    finally:
        for arm in arms.values():
            if arm.neighbour is not None:
                arm.neighbour.close()
    return arms


def main(arguments: argparse.Namespace) -> None:
    """Take turns, and write the line."""
    with serving(arguments.model_repository) as server:
        arms = take_turns(server, arguments)
    record = describe({name: arm.turns for name, arm in arms.items()})
    cores = {
        name: {process: round(cpu_s / arm.wall_s, 3) for process, cpu_s in arm.cpu_s.items()}
        for name, arm in arms.items()
    }
    rates = {
        name: round(arm.neighbour.answered.value / arm.wall_s, 2)
        for name, arm in arms.items()
        if arm.neighbour is not None and name != "busy"
    }
    figures = {"rounds": arguments.rounds, "requests_per_turn": arguments.requests, **record}
    figures |= {"files_per_s": rates, "cores": cores}
    append_result(arguments.out, "large_audio", figures)


def describe(turns: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Of each arm: percentiles of the first audio, and of how much later its turns' medians are than those beside them.

    All in ms; `over_alone` and `over_busy` compare the turns of the same round.
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
    """p50 and p95."""
    return {f"p{which}": round(float(np.percentile(values, which)), 1) for which in (50, 95)}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "large_audio")
    parser.add_argument("--rounds", type=int, default=10, help="times that each turn is taken")
    parser.add_argument("--requests", type=int, default=10, help="texts of a turn")
    return parser.parse_args()


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
