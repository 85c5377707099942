"""Installing a release executes no file of the current folder, whatever it contains."""

from pathlib import Path

import pytest

from plugins.pocket.lab.random_pocket import write_release
from tests.hostile_folder import executed, write_hostile_folder
from tests.hub import Hub
from tests.launcher.test_current_folder import STRETTO, environment, run


@pytest.mark.nightly
def test_installing_executes_no_file_of_the_current_folder(tmp_path: Path) -> None:
    """Download, conversion, and the paths on the command line, which belong to the current folder."""
    hostile = write_hostile_folder(tmp_path / "hostile")
    write_release(hostile / "release")
    with Hub() as hub:
        hub.add("acme/voice", hostile / "release", card={"license": "mit"})
        variables = hub.environment(tmp_path / "hub", **environment(tmp_path))
        for words in (
            ["pull", "acme/voice", "--cpu"],
            ["convert", "pocket-tts", "--model", "release", "--out", "checkpoint"],
            ["make-repository", "--checkpoint", "checkpoint", "--out", "repository"],
        ):
            done = run([STRETTO, *words], hostile, variables)
            assert executed(hostile) == ""
            assert done.returncode == 0, done.stderr
    assert (hostile / "repository" / "speech" / "config.pbtxt").exists()
