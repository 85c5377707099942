"""The paths of vLLM that load and unload adapters: for admin keys only, on every server of a model."""

import json
from typing import Any

import httpx
import pytest

from stretto_client import ClientError, RequestRefused, ServerUnavailable
from tests.client.fake_server import FakeServer
from tests.gateway.conftest import Running, Start

KEY = "admin-key-of-sixteen"
ADMIN = {"authorization": f"Bearer {KEY}"}
LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"
NARRATOR = {"lora_name": "narrator", "lora_path": "voices/narrator"}


class Adapters:
    """Adapters of a fake server, which refuses commands with `failure`."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.failure: ClientError | None = None
        self.num_lists = 0

    async def run(self, command: dict[str, str]) -> list[str]:
        self.num_lists += command["action"] == "list"
        if self.failure is not None:
            raise self.failure
        if command["action"] == "load":
            self.paths[command["name"]] = command["path"]
        if command["action"] == "unload" and self.paths.pop(command["name"], None) is None:
            raise RequestRefused(f"lora_name: expected no value (no adapter was loaded), got {command['name']!r}")
        return [*self.paths]


def adapters_of(gateway: Running) -> Adapters:
    adapters = Adapters()
    gateway.app.state.gateway.client.adapters = adapters.run
    return adapters


def client_of(gateway: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url)


async def test_adapters_are_loaded_listed_named_and_unloaded(start: Start) -> None:
    gateway = await start(admin_keys=(KEY,))
    adapters = adapters_of(gateway)
    async with client_of(gateway) as http:
        loaded = await http.post(LOAD, json=NARRATOR, headers=ADMIN)
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'narrator' added successfully.")
        assert adapters.paths == {"narrator": "voices/narrator"}
        models = (await http.get("/v1/models")).json()["data"]
        assert [(model["id"], model.get("parent"), model["root"]) for model in models[1:]] == [
            ("narrator", models[0]["id"], "narrator")
        ], "callers do not see the server's folders"
        for model, expected in (("narrator", "narrator"), ("tts-1", None)):
            spoken = await http.post("/v1/audio/speech", json={"input": "Hello.", "model": model})
            assert spoken.status_code == 200
            assert json.loads(gateway.behind.requests[-1]["options"]).get("adapter") == expected
        unloaded = await http.post(UNLOAD, json={"lora_name": "narrator"}, headers=ADMIN)
        assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'narrator' removed successfully.")
        again = await http.post(UNLOAD, json={"lora_name": "narrator"}, headers=ADMIN)
        assert (again.status_code, again.json()["error"]["param"]) == (404, "lora_name")
        unknown = await http.post("/v1/audio/speech", json={"input": "Hello.", "model": "narrator"})
        assert unknown.status_code == 404


async def test_a_gateway_that_starts_later_finds_the_adapters(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_gateway.catalogue.REFRESH_S", 3600.0)
    gateway = await start(admin_keys=(KEY,))
    adapters = adapters_of(gateway)
    adapters.paths = {"narrator": "voices/narrator"}
    async with client_of(gateway) as http:
        for model in ("narrator", "narrator", "tts-1"):
            spoken = await http.post("/v1/audio/speech", json={"input": "Hello.", "model": model})
            assert spoken.status_code == 200
        for _ in range(3):
            assert (await http.post("/v1/audio/speech", json={"input": "a", "model": "other"})).status_code == 404
    assert adapters.num_lists == 1  # within REFRESH_S


@pytest.mark.parametrize(
    ("admin_keys", "keys", "sent", "status", "code"),
    [
        ((), (), KEY, 404, "no_admin_keys"),
        ((), (KEY,), KEY, 404, "no_admin_keys"),
        ((KEY,), (), "", 401, "invalid_api_key"),
        ((KEY,), ("another-key-of-callers",), "another-key-of-callers", 401, "invalid_api_key"),
        ((KEY,), ("another-key-of-callers",), KEY, 200, ""),
    ],
)
async def test_an_admin_key_is_needed(
    start: Start, admin_keys: tuple[str, ...], keys: tuple[str, ...], sent: str, status: int, code: str
) -> None:
    gateway = await start(admin_keys=admin_keys, keys=keys)
    adapters = adapters_of(gateway)
    async with client_of(gateway) as http:
        headers = {"authorization": f"Bearer {sent}"} if sent else {}
        for path in (LOAD, f"{LOAD}/", UNLOAD):
            adapters.paths = {} if path != UNLOAD else {"narrator": ""}
            answer = await http.post(path, json=NARRATOR, headers=headers)
            assert answer.status_code == status
            assert not code or answer.json()["error"]["code"] == code
        if keys and admin_keys:
            refused = await http.post("/v1/audio/speech", json={"input": "a"}, headers=ADMIN)
            assert refused.status_code == 401, "an admin key is no key of a caller"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"lora_name": "tts-1"}, "lora_name"),
        ({"lora_name": "tiny"}, "lora_name"),
        ({"load_inplace": True}, "load_inplace"),
        ({"lora_path": 3}, "lora_path"),
    ],
)
async def test_names_and_fields_that_are_refused(start: Start, change: dict[str, Any], param: str) -> None:
    gateway = await start(admin_keys=(KEY,))
    adapters = adapters_of(gateway)
    async with client_of(gateway) as http:
        refused = await http.post(LOAD, json=NARRATOR | change, headers=ADMIN)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert adapters.paths == {}


async def test_all_replicas_load_an_adapter_or_none(start: Start) -> None:
    servers = [FakeServer(lambda _: []) for _ in range(3)]
    addresses = tuple([await server.start() for server in servers])
    gateway = await start(admin_keys=(KEY,), replicas=addresses)
    replicas = [Adapters() for _ in servers]
    for client, adapters in zip(gateway.app.state.gateway.each_client, replicas, strict=True):
        client.adapters = adapters.run
    async with client_of(gateway) as http:
        replicas[2].failure = ServerUnavailable("down")
        failed = await http.post(LOAD, json=NARRATOR, headers=ADMIN)
        assert failed.status_code == 503
        assert [adapters.paths for adapters in replicas] == [{}, {}, {}]
        replicas[2].failure = None
        assert (await http.post(LOAD, json=NARRATOR, headers=ADMIN)).status_code == 200
        assert [adapters.paths for adapters in replicas] == [{"narrator": "voices/narrator"}] * 3
        replicas[2].failure = ServerUnavailable("down")
        assert (await http.post(UNLOAD, json=NARRATOR, headers=ADMIN)).status_code == 503
        replicas[2].failure = None
        assert (await http.post(UNLOAD, json=NARRATOR, headers=ADMIN)).status_code == 200
        assert [adapters.paths for adapters in replicas] == [{}, {}, {}]
    for server in servers:
        await server.stop()
