"""`stretto pull` of a release whose files are in three repositories."""

import subprocess
import sys
from pathlib import Path

import pytest

from plugins.vibevoice.lab.releases import LAYOUTS
from stretto.convert.command import main as convert
from stretto.releases.catalogue import find
from stretto.releases.store import InstalledModels
from tests.hub import Hub
from tests.installed_models import contents
from tests.named_releases import add_named

pytestmark = pytest.mark.nightly


def test_name_whose_files_are_in_three_repositories(tmp_path: Path) -> None:
    """VibeVoice Realtime's weights, voices and tokenizer are downloaded by name; the checkpoint is the converter's."""
    entry = find("vibevoice-realtime")
    release = tmp_path / "release"
    assert entry is not None
    LAYOUTS[entry.source.repository].command(tmp_path)
    for path in release.glob("voices/*.pt"):  # the repository of the voices has safetensors only
        path.unlink()
    with Hub() as hub:
        add_named(hub, entry.name, release)
        environment = hub.environment(tmp_path / "hub", STRETTO_MODELS=str(tmp_path / "models"))
        command = [sys.executable, "-m", "stretto", "pull", "vibevoice-realtime", "--cpu", "--accept-license"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = InstalledModels(tmp_path / "models").all()
    assert convert(["vibevoice-realtime", "--model", str(release), "--out", str(tmp_path / "by_hand")]) == 0
    assert contents(model.checkpoint) == contents(tmp_path / "by_hand")
