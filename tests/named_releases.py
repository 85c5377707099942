"""Small releases in the repositories of a name of the catalogue, and `stretto run` with the name."""

import subprocess
import sys
from pathlib import Path

from stretto.releases.catalogue import find
from tests.hub import Hub
from tests.ports import free_row


def add_named(hub: Hub, name: str, release: Path) -> None:
    """Add the files of a release to the hub, in the repositories and commits of a name of the catalogue."""
    entry = find(name)
    assert entry is not None
    for source in entry.repositories:
        found = {path for pattern in source.files for path in release.glob(pattern)}
        files = {path.relative_to(release).as_posix(): path.read_bytes() for path in found}
        repository = hub.add(source.repository, files, card={"license": "mit"})
        if source.revision is not None:
            repository.pin(source.revision)


def transcribed_by_run(name: str, release: Path, recording: bytes, folder: Path, *words: str) -> str:
    """Return the transcript that `stretto run NAME` prints for a recording; the model stays in `folder/models`."""
    (folder / "recording").write_bytes(recording)
    with Hub() as hub:
        add_named(hub, name, release)
        own = {"STRETTO_MODELS": str(folder / "models"), "STRETTO_PORT": str(free_row(4))}
        environment = hub.environment(folder / "hub", **own)

        def stretto(*arguments: str) -> str:
            command = [sys.executable, "-m", "stretto", *arguments]
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        try:
            return stretto("run", name, "recording", "--accept-license", *words)
        finally:
            stretto("serve", "--stop")
