"""The loopback hub: the hub's client library downloads from it, and each fault has its effect."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.hub import Hub

FILES = {"config.json": b"{}", "voices/a.txt": b"a", "model.safetensors": os.urandom(3_000_000)}
PROGRAM = """
import json, sys
from huggingface_hub import HfApi, snapshot_download
found = HfApi().model_info("acme/voice", files_metadata=True)
sizes = {each.rfilename: each.size for each in found.siblings}
lfs = {each.rfilename: each.lfs.sha256 for each in found.siblings if each.lfs}
tree = [each.path for each in HfApi().list_repo_tree("acme/voice", recursive=True)]
folder = snapshot_download("acme/voice", revision=sys.argv[1])
print(json.dumps([found.sha, sizes, lfs, tree, found.gated, found.card_data.license, folder]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Yield a hub with the model acme/voice."""
    with Hub() as hub:
        hub.add("acme/voice", FILES, card={"license": "mit"})
        hub.grants = {"granted": {"acme/voice"}, "other": set()}
        yield hub


def path_of(hub: Hub, name: str, revision: str = "main") -> str:
    return f"{hub.url}/acme/voice/resolve/{revision}/{name}"


def get(hub: Hub, name: str, **headers: str) -> httpx.Response:
    """Return the answer to a request for a file, after redirects."""
    return httpx.get(path_of(hub, name), headers=headers, follow_redirects=True, trust_env=False)


def test_client_library_downloads_a_snapshot(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["acme/voice"]
    first = repository.branches["main"]
    repository.commit({f"many/{number}": b"" for number in range(1200)} | FILES)
    environment = hub.environment(tmp_path, HF_TOKEN="granted")
    command = [sys.executable, "-c", PROGRAM, first]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    sha, sizes, lfs, tree, gated, licence, folder = json.loads(done.stdout)
    assert sha == repository.branches["main"] != first
    assert sizes["model.safetensors"] == 3_000_000
    assert lfs == {"model.safetensors": hashlib.sha256(FILES["model.safetensors"]).hexdigest()}
    assert len(tree) == 1200 + len(FILES) + 2, "all files and two folders, from several pages"
    assert (gated, licence) == (False, "mit")
    assert {name: (Path(folder) / name).read_bytes() for name in FILES} == FILES
    assert not (Path(folder) / "many").exists()
    stored = [request for request in hub.requests if request.storage]
    assert stored
    assert {each.token for each in stored} == {None}, "the token is only for the hub itself"
    assert {each.token for each in hub.requests} == {None, "granted"}


def test_gate_and_names(hub: Hub) -> None:
    hub.repositories["acme/voice"].gated = "manual"
    answers = [
        get(hub, "config.json", **headers)
        for headers in (
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "Bearer unknown"},
            {"Authorization": "Bearer granted"},
        )
    ]
    assert [each.status_code for each in answers] == [401, 403, 401, 200]
    assert [each.headers.get("X-Error-Code") for each in answers] == ["GatedRepo", "GatedRepo", None, None]
    hub.repositories["acme/voice"].gated = False
    codes = [
        httpx.get(url, trust_env=False).headers.get("X-Error-Code")
        for url in (
            f"{hub.url}/api/models/acme/none",
            path_of(hub, "none"),
            path_of(hub, "config.json", "v9"),
        )
    ]
    assert codes == ["RepoNotFound", "EntryNotFound", "RevisionNotFound"]


def test_ranges(hub: Hub) -> None:
    data = FILES["model.safetensors"]
    answer = get(hub, "model.safetensors", Range="bytes=8-15")
    assert (answer.status_code, answer.content) == (206, data[8:16])
    assert answer.headers["Content-Range"] == "bytes 8-15/3000000"
    assert get(hub, "model.safetensors", Range="bytes=2999999-").content == data[-1:]
    assert get(hub, "model.safetensors", Range="bytes=3000000-").status_code == 416


def test_faults_apply_as_often_as_given(hub: Hub) -> None:
    data = FILES["model.safetensors"]
    hub.fail("model.safetensors", status=429, headers={"Retry-After": "1"}, times=2)
    answers = [get(hub, "model.safetensors") for _ in range(3)]
    assert [each.status_code for each in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "1"
    assert get(hub, "config.json").content == b"{}"
    stored = "GET /acme/voice/model.safetensors/"
    hub.fail(stored, is_wrong=True)
    wrong = get(hub, "model.safetensors").content
    assert [place for place in range(len(data)) if wrong[place] != data[place]] == [1_500_000]
    hub.fail(stored, short=500)
    assert get(hub, "model.safetensors").content == data[:-500]
    hub.fail(stored, ignores_range=True)
    assert get(hub, "model.safetensors", Range="bytes=5-").content == data
    for settings, error in (({}, httpx.RemoteProtocolError), ({"resets": True}, httpx.ReadError)):
        hub.fail(stored, drop_after=100_000, **settings)
        with pytest.raises(error):
            get(hub, "model.safetensors")
    assert get(hub, "model.safetensors").content == data
