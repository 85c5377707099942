"""Requests and figures of the large-file benchmark."""

import os

import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest

from benchmarks.large_audio import FILES, REFUSED, Neighbour, describe, keep_busy, large_request
from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import read_file
from stretto.preprocessing.file_size import MAX_FILE_BYTES

WHY_REFUSED = {"long": "at most 9.6 s", "format": "Format not recognised", "unsound": "Format"}


def test_benchmark_differences_are_within_one_round() -> None:
    turns = {"alone": [[0.2, 0.2, 0.3], [0.4]], "busy": [[0.25], [0.45]], "prepared": [[0.26], [0.48]]}
    figures = describe(turns)["ms"]
    assert figures["alone"] == {"first_audio": {"p50": pytest.approx(250), "p95": pytest.approx(385)}}
    assert figures["busy"]["over_alone"] == {"p50": pytest.approx(50), "p95": pytest.approx(50)}
    assert figures["prepared"]["over_alone"] == {"p50": pytest.approx(70), "p95": pytest.approx(79)}
    assert figures["prepared"]["over_busy"] == {"p50": pytest.approx(20), "p95": pytest.approx(29)}


@pytest.mark.parametrize("kind", FILES)
def test_large_audio_files_are_read_or_refused_as_declared(kind: str) -> None:
    request = ModelInferRequest.FromString(large_request(kind))
    data = request.raw_input_contents[0][4:]
    assert 18_900_000 < len(data) <= MAX_FILE_BYTES
    if kind not in REFUSED:
        assert len(read_file(data, 9.6)[0]) > 0
        return
    with pytest.raises(InvalidRequest, match=WHY_REFUSED[kind]):
        read_file(data, 9.6)


def test_benchmark_neighbour_process_runs_and_ends() -> None:
    neighbour = Neighbour(keep_busy, "nowhere", "busy")
    pid = neighbour.pid
    with neighbour.at_work():
        os.kill(pid, 0)
    neighbour.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
