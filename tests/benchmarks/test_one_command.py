"""The hub of the comparison of `stretto run` with the commands by hand, and its disk space."""

import urllib.request
from pathlib import Path

from benchmarks.one_command import REPOSITORY, Hub, User
from tests.patience import until


def test_hub_counts_requests_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub = Hub(tmp_path)
    assert hub.counts() == (0, 0)
    with urllib.request.urlopen(f"{hub.url}/{REPOSITORY}/resolve/main/config.json") as answer:
        assert answer.read() == b"{}"
    until(lambda: hub.counts() == (1, 2))  # the hub counts bytes once they are sent
    hub.close()


def test_linked_file_takes_space_once(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    user = User(hub, tmp_path / "user", 1)
    user.folder.mkdir()
    file = user.folder / "a"
    file.write_bytes(bytes(10_000))
    space = user.disk_bytes()
    assert space >= 10_000
    (user.folder / "b").hardlink_to(file)
    assert user.disk_bytes() == space
    hub.close()
