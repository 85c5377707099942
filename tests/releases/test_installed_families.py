"""`stretto pull` of published layouts: the checkpoint equals the one that `stretto convert` writes by hand."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.releases.codec_cases import of_plugins
from stretto.convert.command import main as convert
from stretto.releases.store import InstalledModels
from tests.family_releases import LAYOUTS
from tests.hub import Hub
from tests.installed_models import contents

pytestmark = pytest.mark.nightly


# For each release of one repository, the converter's arguments by hand, with {release} for its folder, and those that
# only small releases need.
QWEN3_TTS = "--model {release} --config {release}/config.json --tokenizer {release} --codec {release}/speech_tokenizer"
BY_HAND = {"Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice": (QWEN3_TTS, "")} | of_plugins("BY_HAND", "releases")


@pytest.mark.parametrize("repository", BY_HAND)
def test_installed_checkpoint_is_that_of_the_converter(repository: str, tmp_path: Path) -> None:
    layout = LAYOUTS[repository]
    layout.command(tmp_path)
    release = tmp_path / "release"
    shutil.rmtree(release / "voices", ignore_errors=True)  # voices of the user's own, which no repository has
    by_hand, more = (words.format(release=release).split() for words in BY_HAND[repository])
    with Hub() as hub:
        hub.add(repository, release, card={"license": "mit"})
        environment = hub.environment(tmp_path / "hub", STRETTO_MODELS=str(tmp_path / "models"))
        options = [word for argument in more for word in ("--with", argument)]
        command = [sys.executable, "-m", "stretto", "pull", repository, *options, "--cpu"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = InstalledModels(tmp_path / "models").all()
    assert model.manifest.family.replace("_", "-") == layout.family
    assert model.manifest.request.release == repository
    by_hand += [word for argument in more for word in f"--{argument}".split("=")]
    assert convert([layout.family, *by_hand, "--out", str(tmp_path / "by_hand")]) == 0
    expected = contents(tmp_path / "by_hand")
    assert contents(model.checkpoint) == expected
    assert {name: facts["bytes"] for name, facts in model.manifest.files.items()} == {
        name: len(data) for name, data in expected.items()
    }
