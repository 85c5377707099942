"""docs/http_streaming.md: all commands of the page against a real server."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest

from tests.patience import PATIENCE_S
from tests.ports import free_ports
from tests.server.conftest import REPOSITORY, served_repository

pytestmark = [pytest.mark.server, pytest.mark.nightly]
PAGE = (Path(__file__).parents[2] / "docs/http_streaming.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Return the port of a server for each port of the page."""
    (gateway,) = free_ports(1)
    flags = ("--allow", "http", "--gateway", "--gateway-port", str(gateway))
    with served_repository(tmp_path_factory.mktemp("server"), REPOSITORY, *flags) as server:
        yield {"8000": server.http, "8001": server.grpc, "8003": gateway}


def events(path: Path) -> list[dict[str, object]]:
    """Return the data of server-sent events in a file."""
    lines = path.read_text().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_every_command_of_the_page_streams_the_speech(
    ports: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, list[np.ndarray]] = {}
    for language, block in BLOCKS:
        commands = re.sub(r"localhost:(\d+)", lambda match: f"localhost:{ports[match[1]]}", block)
        if language == "python":
            exec(compile(commands, "docs/http_streaming.md", "exec"), names)
        else:
            shell = ["bash", "-euc", commands.replace("curl -s", "curl -sf")]
            done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            assert done.returncode == 0, (block, done)
    records = events(tmp_path / "records.txt")
    seconds = {
        "raw": (tmp_path / "speech.pcm").stat().st_size / 2 / 24_000,
        "gRPC": sum(map(len, names["samples"])) / 24_000,
        "generate_stream": sum(np.size(record.get("pcm", [])) for record in records) / 24_000,
    }
    assert all(0.7 < duration < 2.5 for duration in seconds.values()), seconds
    assert json.loads(str(records[-1]["event"]))["is_final"]
    assert min(len(names["samples"]), len(records)) > 1


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Hi."]}]}),
        ("generate", {"text": "Hi."}),
    ],
)
def test_endpoints_for_one_response_refuse_with_the_words_of_the_page(
    ports: dict[str, int], endpoint: str, body: dict[str, object]
) -> None:
    url = f"http://localhost:{ports['8000']}/v2/models/speech/{endpoint}"
    try:
        answer = urllib.request.urlopen(url, json.dumps(body).encode(), timeout=PATIENCE_S).read().decode()
    except HTTPError as error:
        answer = f"{error.code} {error.read().decode()}"
    words = " ".join(PAGE.split())
    message = re.sub(r'^(\d* ?)\{"error":"(.*?)[,"].*', r"\1\2", answer)
    assert message in words
