"""`stretto run indextts2` with a loopback hub that has its five repositories, and a real server."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from plugins.indextts2.lab.random_indextts2 import write_release
from stretto.convert.command import main as convert
from stretto.releases.catalogue import ReleaseEntry, find
from stretto.releases.store import InstalledModels
from tests.hub import Hub
from tests.installed_models import contents
from tests.ports import free_row
from tests.recordings import speech

# By night, because the commands import torch twice and start a server.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
NAME = "indextts2"
RATE = 22_050


def add_repositories(hub: Hub, entry: ReleaseEntry, release: Path) -> None:
    """Add the files of a release, which has those of its companions in folders, to the hub."""
    cache = release / "hf_cache"
    (cache / "semantic_codec").mkdir()
    (cache / "semantic_codec_model.safetensors").rename(cache / "semantic_codec" / "model.safetensors")
    folders = [release, *(release / str(companion.to) for companion in entry.companions)]
    for source, folder in zip(entry.repositories, folders, strict=True):
        repository = hub.add(
            source.repository, {name: (folder / name).read_bytes() for name in source.files}, card={"license": "mit"}
        )
        assert source.revision is not None
        repository.pin(source.revision)


def test_run_installs_five_repositories_and_speaks(tmp_path: Path) -> None:
    """The checkpoint is that of the converter by hand."""
    release = write_release(tmp_path / "release")
    entry = find(NAME)
    assert entry is not None
    soundfile.write(tmp_path / "voice.wav", speech(2 * RATE, RATE), RATE)
    options = json.dumps({"audio": {"max_rows": 30}})
    with Hub() as hub:
        add_repositories(hub, entry, release)
        own = {"STRETTO_MODELS": str(tmp_path / "models"), "STRETTO_PORT": str(free_row(4))}
        environment = hub.environment(tmp_path / "hub", **own)

        def stretto(*words: str) -> bytes:
            command = [sys.executable, "-m", "stretto", *words]
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        words = ("Hello there.", "--clone", "voice.wav", "--seed", "3", "--options", options, "--out", "-")
        try:
            first = stretto("run", NAME, *words, "--cpu", "--accept-license")
            again = stretto("run", NAME, *words, "--cpu", "--offline")
        finally:
            stretto("serve", "--stop")
    samples, rate = soundfile.read(io.BytesIO(first))
    assert rate == RATE
    assert np.abs(samples).max() > 1e-3
    assert again == first
    (model,) = InstalledModels(tmp_path / "models").all()
    assert convert([NAME, "--model", str(release), "--out", str(tmp_path / "by_hand")]) == 0
    assert contents(model.checkpoint) == contents(tmp_path / "by_hand")
