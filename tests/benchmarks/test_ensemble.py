"""Costs of the server's processes add up."""

import pytest

from benchmarks.ensemble import costs

PROCESSES = ("proxy", "tritonserver", "preprocessor", "language_model", "engine", "acoustic_decoder", "client")


def test_io_layer_cost_is_proxy_server_stub_and_client() -> None:
    known = dict(zip(PROCESSES, (2.0, 8.0, 1.0, 7.0, 60.0, 18.0, 4.0), strict=True))
    found = costs([known, {**known, "client": 6.0}, known])
    assert found == pytest.approx({**known, "rim": 21.0, "all": 100.0})
