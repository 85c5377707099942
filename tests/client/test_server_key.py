"""The key of a server on this host is found by its port, and sent to no other server."""

import os
from pathlib import Path

import pytest

from stretto_client.client import HEADER, key_headers


def leave(directory: Path, launch: str, key: str) -> Path:
    folder = directory / f"stretto_launch_{launch}.run"
    folder.mkdir(mode=0o700)
    path = folder / "key-8001"
    path.touch(0o600)
    path.write_text(key)
    return path


@pytest.mark.parametrize("server", ["localhost:8001", "127.0.0.1:8001", "[::1]:8001"])
def test_a_server_on_this_host_gets_its_key(tmp_path: Path, server: str) -> None:
    leave(tmp_path, "1_a", "open sesame")
    assert key_headers(server, tmp_path) == {HEADER: "open sesame"}


@pytest.mark.parametrize("server", ["localhost:8002", "10.0.0.1:8001", "example.org:8001", "localhost", "x:8001"])
def test_another_server_gets_none(tmp_path: Path, server: str) -> None:
    leave(tmp_path, "1_a", "open sesame")
    assert key_headers(server, tmp_path) == {}


@pytest.mark.parametrize("mode", [0o644, 0o620])
def test_a_file_that_others_could_have_written_or_read_is_no_key(tmp_path: Path, mode: int) -> None:
    leave(tmp_path, "1_a", "open sesame").chmod(mode)
    assert key_headers("localhost:8001", tmp_path) == {}


def test_a_folder_that_others_may_enter_holds_no_key(tmp_path: Path) -> None:
    leave(tmp_path, "1_a", "open sesame").parent.chmod(0o755)
    assert key_headers("localhost:8001", tmp_path) == {}


def test_the_latest_start_is_meant(tmp_path: Path) -> None:
    leave(tmp_path, "1_a", "of a launcher that died")
    late = leave(tmp_path, "2_b", "open sesame")
    os.utime(late, ns=(late.stat().st_mtime_ns + 10**9,) * 2)
    assert key_headers("localhost:8001", tmp_path) == {HEADER: "open sesame"}
