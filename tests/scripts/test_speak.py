"""`scripts/speak.sh` with fakes of the set-up and of `stretto`: its calls and their working directory."""

import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

SPEAK = Path(__file__).parents[2] / "scripts/speak.sh"
STRETTO = """#!/bin/sh
echo "stretto in $PWD:"
for word; do echo "$word"; done
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "the clone of Jörg"
    for path, text in {
        "scripts/speak.sh": SPEAK.read_text(),
        "scripts/setup.sh": '#!/bin/sh\necho "setup $*"\n',
        ".venv/bin/stretto": STRETTO,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        (folder / path).chmod(0o755)
    return folder


def speak(clone: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [str(clone / "scripts/speak.sh"), *words]
    return subprocess.run(command, cwd=clone.parent, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_speak_script_sets_up_and_speaks_in_the_current_directory(clone: Path) -> None:
    done = speak(clone, "two  words", "--seed", "1")
    expected = ["setup embedded", f"stretto in {clone.parent}:", "speak", "--out", "speech.wav", "two  words"]
    assert done.stdout.splitlines() == [*expected, "--seed", "1"], done.stderr


def test_speak_script_stops_the_server_without_setup(clone: Path) -> None:
    done = speak(clone, "--stop")
    assert done.stdout.splitlines() == [f"stretto in {clone.parent}:", "serve", "--stop"], done.stderr
    (clone / ".venv/bin/stretto").unlink()
    assert (speak(clone, "--stop").returncode, speak(clone, "--stop").stdout) == (0, "")


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--help",), 0)])
def test_speak_script_without_text_prints_its_usage(clone: Path, words: tuple[str, ...], code: int) -> None:
    done = speak(clone, *words)
    assert done.returncode == code
    assert (done.stdout + done.stderr).startswith('scripts/speak.sh "text" [options] ')


def test_speak_script_exits_with_the_setup_status(clone: Path) -> None:
    (clone / "scripts/setup.sh").write_text("#!/bin/sh\nexit 7\n")
    done = speak(clone, "hello")
    assert (done.returncode, done.stdout) == (7, "")
