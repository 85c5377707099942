"""`stretto pull` of Magpie TTS, whose archives are in two repositories."""

import subprocess
import sys
from pathlib import Path

import pytest

from plugins.magpie.lab.random_magpie import command, write_release
from stretto.convert.command import main as convert
from stretto.releases.store import InstalledModels
from tests.hub import Hub
from tests.installed_models import contents
from tests.named_releases import add_named

pytestmark = pytest.mark.nightly
NAME = "magpie-tts"


def test_checkpoint_of_the_name_is_that_of_the_converter(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    with Hub() as hub:
        add_named(hub, NAME, release)
        environment = hub.environment(tmp_path / "hub", STRETTO_MODELS=str(tmp_path / "models"))
        words = [sys.executable, "-m", "stretto", "pull", NAME, "--cpu", "--accept-license"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = InstalledModels(tmp_path / "models").all()
    assert convert([*command(release), "--out", str(tmp_path / "by_hand")]) == 0
    assert contents(model.checkpoint) == contents(tmp_path / "by_hand")
