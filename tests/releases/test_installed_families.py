"""`stretto pull` of published layouts: the checkpoint equals the one that `stretto convert` writes by hand."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stretto.convert.command import main as convert
from stretto.releases.catalogue import find
from stretto.releases.store import InstalledModels
from tests.family_releases import LAYOUTS
from tests.hub import Hub
from tests.installed_models import contents

pytestmark = pytest.mark.nightly


@dataclass(frozen=True)
class Case:
    """A published release.

    Attributes:
        repository: Name of the repository, of which `LAYOUTS` has a small random release.
        family: Family that recognises it.
        by_hand: Arguments of the converter, with the folder of the release for {release}.
        more: Arguments that only small releases need.
    """

    repository: str
    family: str
    by_hand: tuple[str, ...]
    more: tuple[str, ...] = ()


QWEN3_TTS = ("--model", "{release}", "--config", "{release}/config.json", "--tokenizer", "{release}")
CHATTERBOX = ("--model", "{release}/t3_cfg.safetensors", "--tokenizer", "{release}", "--codec", "{release}")
CASES = [
    Case("Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice", "qwen3_tts", (*QWEN3_TTS, "--codec", "{release}/speech_tokenizer")),
    Case("ResembleAI/chatterbox", "chatterbox", CHATTERBOX, ("backbone={release}/backbone.json",)),
    Case("kyutai/stt-1b-en_fr", "kyutai_stt", ("--model", "{release}")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_installed_checkpoint_is_that_of_the_converter(case: Case, tmp_path: Path) -> None:
    layout = LAYOUTS[case.repository]
    layout.command(tmp_path)
    release = tmp_path / "release"
    shutil.rmtree(release / "voices", ignore_errors=True)  # voices of the user's own, which no repository has
    more = [word.format(release=release) for word in case.more]
    with Hub() as hub:
        hub.add(case.repository, release, card={"license": "mit"})
        environment = hub.environment(tmp_path / "hub", STRETTO_MODELS=str(tmp_path / "models"))
        words = [word for each in more for word in ("--with", each)]
        command = [sys.executable, "-m", "stretto", "pull", case.repository, *words, "--cpu"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = InstalledModels(tmp_path / "models").all()
    assert model.manifest.family == case.family
    assert model.manifest.request.release == case.repository
    own = [word for each in more for word in ("--" + each.partition("=")[0], each.partition("=")[2])]
    by_hand = [word.format(release=release) for word in case.by_hand]
    assert convert([layout.family, *by_hand, *own, "--out", str(tmp_path / "by_hand")]) == 0
    installed, expected = contents(model.checkpoint), contents(tmp_path / "by_hand")
    assert installed.keys() == expected.keys()
    assert [name for name in installed if installed[name] != expected[name]] == []
    assert {name: facts["bytes"] for name, facts in model.manifest.files.items()} == {
        name: len(data) for name, data in expected.items()
    }


def test_name_whose_files_are_in_three_repositories(tmp_path: Path) -> None:
    """VibeVoice Realtime's weights, voices and tokenizer are downloaded by name; the checkpoint is the converter's."""
    entry, release = find("vibevoice-realtime"), tmp_path / "release"
    assert entry is not None
    LAYOUTS[entry.source.repository].command(tmp_path)
    for path in release.glob("voices/*.pt"):  # the repository of the voices has safetensors only
        path.unlink()
    for name in ("vocab.json", "merges.txt"):  # of Qwen2.5; the converter reads tokenizer.json
        (release / name).write_text("{}")
    with Hub() as hub:
        for source in entry.repositories:
            found = {path for pattern in source.files for path in release.glob(pattern)}
            files = {path.relative_to(release).as_posix(): path.read_bytes() for path in found}
            repository = hub.add(source.repository, files, card={"license": "mit"})
            if source.revision is not None:
                repository.pin(source.revision)
        environment = hub.environment(tmp_path / "hub", STRETTO_MODELS=str(tmp_path / "models"))
        command = [sys.executable, "-m", "stretto", "pull", "vibevoice-realtime", "--cpu", "--accept-license"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = InstalledModels(tmp_path / "models").all()
    assert convert(["vibevoice-realtime", "--model", str(release), "--out", str(tmp_path / "by_hand")]) == 0
    assert contents(model.checkpoint) == contents(tmp_path / "by_hand")
