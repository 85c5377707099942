"""The launcher's flags on a tritonserver without our models."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import served_repository

pytestmark = pytest.mark.server

CONFIG = 'name: "still" backend: "python" max_batch_size: 0 output { name: "a" data_type: TYPE_INT32 dims: [1] }'
MODEL = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
ASK_S = 30


@pytest.fixture
def http_port(tmp_path: Path) -> Iterator[int]:
    """Return the HTTP port of a server started with Triton's HTTP service open."""
    folder = tmp_path / "models" / "still"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(MODEL)
    with served_repository(tmp_path, folder.parent, "--allow", "http", "--allow", "trace") as server:
        yield server.http


def asked(port: int, path: str) -> str:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ASK_S).read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_allowed_http_service_keeps_other_apis_restricted(http_port: int) -> None:
    assert json.loads(json.loads(asked(http_port, "/v2"))["name"])["model"] == "models", "the folder's name"
    assert "restricted" not in asked(http_port, "/v2/trace/setting")
    for path in ("/v2/systemsharedmemory/status", "/v2/logging"):
        assert "This API is restricted, expecting header 'stretto-key'" in asked(http_port, path)
