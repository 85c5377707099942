"""Adapters that an operator loads into a running server, through the gateway."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stretto.launcher.config import PORT_STEP
from stretto.launcher.processes import descendants
from tests.engine.adapters import write_adapter
from tests.patience import PATIENCE_S, until
from tests.ports import free_row
from tests.server.conftest import REPOSITORY, START_S, Server, served_repository
from tests.server.listening import Answer, Stream, as_inputs
from tests.server.openai_client import gateway_port

pytestmark = [pytest.mark.server, pytest.mark.nightly]
TEXT = "The train to Lisbon leaves at nine."
KEY = "admin-key-of-sixteen"
ADMIN = {"authorization": f"Bearer {KEY}"}
NARRATOR = {"lora_name": "narrator", "lora_path": "narrator"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the operator's folder, with two adapters and one for another model."""
    root = tmp_path_factory.mktemp("adapters")
    checkpoint = REPOSITORY / "language_model" / "1" / "checkpoint"
    for seed, name in enumerate(("narrator", "whisperer")):
        write_adapter(root / name, checkpoint, seed)
    shutil.copytree(root / "narrator", root / "foreign")
    (root / "foreign" / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 8, "target_modules": []}')
    return root


def repository_with(folder: Path, engine: dict[str, Any]) -> Path:
    """Write a copy of the model repository with more options in its engine.json."""
    copy = Path(shutil.copytree(REPOSITORY, folder / "repository"))
    path = copy / "language_model" / "1" / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | engine))
    return copy


@pytest.fixture(scope="module")
def loading(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server into which two adapters may be loaded."""
    home = tmp_path_factory.mktemp("loading")
    engine = {"adapters_folder": str(folder), "adapter_slots": 2, "adapter_rank": 8}
    with served_repository(home, repository_with(home, engine)) as server:
        yield server


@pytest.fixture(scope="module")
def replies_of_configured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """Return the codes of a server whose adapters are in engine.json, by the adapter's name; empty for none."""
    home = tmp_path_factory.mktemp("configured")
    names = ("narrator", "whisperer")
    engine = {"adapters": {name: str(folder / name) for name in names}}
    with served_repository(home, repository_with(home, engine)) as server:
        return {name: speech(server, name) for name in ("", *names)}


@pytest.fixture(scope="module")
def replicas(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas with a folder of adapters, whose ports follow those of the first one, and their gateway."""
    home = tmp_path_factory.mktemp("replicas")
    keys = home / "admins"
    keys.write_text(f"{KEY}\n")
    shutil.copytree(folder / "narrator", home / "adapters" / "narrator")
    engine = {"adapters_folder": str(home / "adapters"), "adapter_slots": 1, "adapter_rank": 8}
    first = free_row(PORT_STEP + 3)
    flags = ("--gateway", f"--gateway-port={first + 3}", f"--gateway-arg=--admin-keys={keys}", "--replicas=2")
    server = Server(home, repository_with(home, engine), *flags)
    server.http = first
    server.grpc = first + 1
    server.metrics = first + 2
    try:
        server.start()
        yield server
    finally:
        server.stop()


def reply_of(port: int, adapter: str) -> Answer:
    """Return a reply of the server with this gRPC port, with its codes."""
    options: dict[str, Any] = {"seed": 7, "output": {"codes": True}}
    return Stream(port, **as_inputs(options | ({"adapter": adapter} if adapter else {}), {"text": TEXT})).listen()


def speech(server: Server, adapter: str) -> list[list[int]]:
    """Return the codes of a reply."""
    answer = reply_of(server.grpc, adapter)
    assert answer.error is None
    return answer.codes.tolist()


async def test_an_adapter_loaded_at_run_time_equals_one_loaded_at_the_start(
    loading: Server, replies_of_configured: dict[str, list[list[int]]]
) -> None:
    before = speech(loading, "")
    async with (
        gateway_port(loading.grpc, admin_keys=(KEY,)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http,
    ):
        for name in ("narrator", "whisperer"):
            body = {"lora_name": name, "lora_path": name}
            loaded = await http.post("/v1/load_lora_adapter", json=body, headers=ADMIN)
            assert (loaded.status_code, loaded.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
        models = (await http.get("/v1/models")).json()["data"]
        assert [(model["id"], model.get("parent")) for model in models] == [
            ("tiny", None),
            ("narrator", "tiny"),
            ("whisperer", "tiny"),
        ]
        assert {name: speech(loading, name) for name in replies_of_configured} == replies_of_configured
        assert speech(loading, "") == before
        spoken = {"input": TEXT, "seed": 7, "response_format": "pcm"}
        by_model = await http.post("/v1/audio/speech", json={**spoken, "model": "narrator"})
        by_field = await http.post("/v1/audio/speech", json={**spoken, "model": "tts-1", "adapter": "narrator"})
        plain = await http.post("/v1/audio/speech", json={**spoken, "model": "tts-1"})
        assert len(by_model.content) == len(by_field.content) != len(plain.content)

        (engine,) = [each for each in descendants(loading.pid) if each.command.startswith("VLLM::EngineCore")]
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: loading.state() != "ready", "the engine has ended")
        loading.until_ready()
        assert speech(loading, "whisperer") == replies_of_configured["whisperer"]
        unloaded = await http.post("/v1/unload_lora_adapter", json={"lora_name": "narrator"}, headers=ADMIN)
        assert (unloaded.status_code, unloaded.text) == (
            200,
            "Success: LoRA adapter 'narrator' removed successfully.",
        )
        loading.refuses(
            {"text": TEXT, "options": {"adapter": "narrator"}}, "options.adapter: expected one of whisperer"
        )
        again = await http.post("/v1/unload_lora_adapter", json={"lora_name": "narrator"}, headers=ADMIN)
        assert again.status_code == 404
        foreign = {"lora_name": "foreign", "lora_path": "foreign"}
        refused = await http.post("/v1/load_lora_adapter", json=foreign, headers=ADMIN)
        assert refused.status_code == 400
        assert "lora_path: expected an adapter for this model" in refused.json()["error"]["message"]
        assert speech(loading, "whisperer") == replies_of_configured["whisperer"]


async def test_replicas_load_and_unload_an_adapter_together(replicas: Server) -> None:
    ports = (replicas.grpc, replicas.grpc + PORT_STEP)
    url = f"http://127.0.0.1:{replicas.http + 3}"
    spoken = {"input": TEXT, "seed": 7, "response_format": "pcm", "model": "narrator"}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http, asyncio.timeout(START_S):
        while any(reply_of(port, "").error for port in ports):
            await asyncio.sleep(0.1)
        plain = [reply_of(port, "").codes.tolist() for port in ports]
        loaded = await http.post("/v1/load_lora_adapter", json=NARRATOR, headers=ADMIN)
        assert loaded.status_code == 200, loaded.text
        narrated = [reply_of(port, "narrator").codes.tolist() for port in ports]
        assert narrated[0] == narrated[1] != plain[0] == plain[1]
        answers = await asyncio.gather(*(http.post("/v1/audio/speech", json=spoken) for _ in range(4)))
        (num_bytes,) = {len(answer.content) for answer in answers}

        async with http.stream("POST", "/v1/audio/speech", json=spoken) as answer:
            parts = answer.aiter_bytes()
            begin = await anext(parts)
            unloaded = await http.post("/v1/unload_lora_adapter", json=NARRATOR, headers=ADMIN)
            assert unloaded.status_code == 200, unloaded.text
            assert len(begin) + len(b"".join([part async for part in parts])) == num_bytes
        for port in ports:
            assert "options.adapter: expected no value" in str(reply_of(port, "narrator").error)
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["tiny"]
        assert (await http.post("/v1/audio/speech", json=spoken)).status_code == 404
