"""Concurrent clients that upload large files, each as soon as its last one is answered: outcomes and memory.

    python -m benchmarks.uploads --clients 12 --seconds 60 --rounds 10

A round passes if every file was answered or refused as `full`, and no process of the server was replaced. Memory is
read before the first round and `--rest-s` seconds after each. One line of JSON.
"""

import argparse
import threading
import time
from collections import Counter
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from benchmarks.harness import append_result, command_line, read_usage, served_processes, serving, stop_on_sigterm
from benchmarks.large_audio import large_request

ANSWER_S = 600.0
WATCHED = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder")


def upload(server: str, request: bytes, until_s: float, outcomes: Counter[str]) -> None:
    """Send a file repeatedly until `until_s`, at least once, and count the outcomes."""
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
    """Return the outcome of a file by its error message."""
    return "answered" if not error else "full" if "full: " in error else error


def take_round(server: str, request: bytes, clients: int, seconds: float) -> dict[str, int]:
    """Run all clients at once and return the number of files by outcome."""
    outcomes: Counter[str] = Counter()
    until_s = time.monotonic() + seconds
    threads = [threading.Thread(target=upload, args=(server, request, until_s, outcomes)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(outcomes)


def memory_mb(pids: dict[str, int]) -> dict[str, int]:
    """Return the resident memory of each process that still runs, in MB of 2^20 bytes."""
    usages = {name: read_usage(pid) for name, pid in pids.items() if name in WATCHED}
    return {name: round(usage.rss_mb) for name, usage in usages.items() if usage is not None}


def measure(server: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds."""
    request, pids = large_request("prepared"), served_processes()
    take_round(server, request, 1, 0.001)  # warms up
    memory, rounds, num_good = [memory_mb(pids)], [], 0
    for _ in range(arguments.rounds):
        rounds.append(take_round(server, request, arguments.clients, arguments.seconds))
        num_good += rounds[-1].keys() <= {"answered", "full"} and served_processes() == pids
        time.sleep(arguments.rest_s)
        memory.append(memory_mb(pids))
    return {"good": num_good, "outcomes": rounds, "memory_mb": memory}


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "uploads",
        serves=True,
        clients=(12, "clients at once"),
        seconds=(60.0, "time in which new files are begun in each round"),
        rounds=(10, "rounds"),
        rest_s=(10.0, "pause after each round, before memory is read"),
    ).parse_args()
    stop_on_sigterm()
    with serving(given.model_repository) as address:
        record = measure(address, given)
    settings = {name: getattr(given, name) for name in ("clients", "seconds", "rounds", "rest_s")}
    append_result(given.out, "uploads", settings | record)
