"""Clients that all upload large files at once, as fast as they are answered: what becomes of them and of the memory.

    python -m benchmarks.uploads --clients 12 --seconds 60 --rounds 10

A round is good where every file got its answer or was refused as `full`, and every process of the server is the
one that it was before. Memory is read before the first round and `--rest-s` after each. One line of JSON.
"""

import argparse
import os
import threading
import time
from collections import Counter
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from benchmarks.large_audio import large_request
from benchmarks.process_watch import read_usage, served_processes
from benchmarks.results_file import append_result
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm

ANSWER_S = 600.0
WATCHED = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder")


def upload(server: str, request: bytes, until_s: float, outcomes: Counter[str]) -> None:
    """Send a file, and again and again until then; counts what came of each."""
    with grpc.insecure_channel(server, [("grpc.max_send_message_length", -1)]) as channel:
        ask = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        is_first = True
        while is_first or time.monotonic() < until_s:
            is_first = False
            try:
                answers = [
                    service_pb2.ModelStreamInferResponse.FromString(each)
                    for each in ask(iter([request]), timeout=ANSWER_S)
                ]
                outcomes[outcome_of(answers[-1].error_message if answers else "no answer")] += 1
            except grpc.RpcError as error:
                outcomes[outcome_of(error.details() or error.code().name)] += 1


def outcome_of(error: str) -> str:
    """What a file is counted as."""
    return "answered" if not error else "full" if "full: " in error else error


def take_round(server: str, request: bytes, clients: int, seconds: float) -> dict[str, int]:
    """All clients at once; how many files came to what."""
    outcomes: Counter[str] = Counter()
    until_s = time.monotonic() + seconds
    threads = [threading.Thread(target=upload, args=(server, request, until_s, outcomes)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(outcomes)


def memory_mb(pids: dict[str, int]) -> dict[str, int]:
    """Resident memory of each process that is still there, in MB of 2^20 bytes."""
    usages = {name: read_usage(pid, 0.0) for name, pid in pids.items() if name in WATCHED}
    return {name: round(usage.rss_mb) for name, usage in usages.items() if usage is not None}


def measure(server: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    request, pids = large_request("prepared"), served_processes(os.getpid())
    take_round(server, request, 1, 0.001)  # the first of all warms up
    memory, rounds, num_good = [memory_mb(pids)], [], 0
    for _ in range(arguments.rounds):
        rounds.append(take_round(server, request, arguments.clients, arguments.seconds))
        num_good += rounds[-1].keys() <= {"answered", "full"} and served_processes(os.getpid()) == pids
        time.sleep(arguments.rest_s)
        memory.append(memory_mb(pids))
    return {"good": num_good, "outcomes": rounds, "memory_mb": memory}


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the line."""
    with serving(arguments.model_repository) as server:
        record = measure(server, arguments)
    given = {name: getattr(arguments, name) for name in ("clients", "seconds", "rounds", "rest_s")}
    append_result(arguments.out, "uploads", given | record)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "uploads")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long new files are begun in each round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rest-s", type=float, default=10.0, help="rest after each round, before memory is read")
    return parser.parse_args()


if __name__ == "__main__":
    stop_on_sigterm()
    main(parse())
