"""The hub and the releases of the comparison of `stretto run` with the commands by hand, and its disk space."""

import math
import urllib.request
from pathlib import Path

from benchmarks.checkpoints.random_qwen3_tts import published_config, shapes
from benchmarks.one_command import REPOSITORY, Hub, User, stages
from stretto.releases.names import find
from tests.patience import until

MAX_HEADER_BYTES = 100_000


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


def test_qwen3_tts_has_the_size_of_the_published_release() -> None:
    num_bytes = 2 * sum(math.prod(shape) for shape in shapes(published_config()).values())  # bfloat16
    entry = find("qwen3-tts-0.6b")
    assert entry is not None
    assert 0 < entry.source.sizes["model.safetensors"] - num_bytes < MAX_HEADER_BYTES


def test_stages_last_until_the_next_one_begins() -> None:
    lines = [
        (1.0, "voice   acme/voice"),
        (1.5, "        a companion"),
        (2.0, "converting   voice"),
        (3.5, "converting  2"),
    ]
    assert stages([*lines, (4.0, "starting the server")]) == {"voice": 1.0, "converting": 2.0}
