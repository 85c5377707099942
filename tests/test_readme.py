"""The commands of the README, as printed there."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.ports import free_row

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_BLOCK = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
assert FIRST_BLOCK, "the README shows no commands"
COMMANDS = [line.split("  #")[0].strip() for line in FIRST_BLOCK[1].splitlines() if line.startswith("scripts/")]
LAST_LINE = re.compile(
    r"speech\.wav: [\d.]+ s of audio, first audio after [\d.]+ s, real-time factor [\d.]+, seed \d+, guidance [\d.]+"
)


def test_the_readme_shows_one_command_that_speaks_and_one_that_tests() -> None:
    assert [shlex.split(command)[0] for command in COMMANDS] == ["scripts/speak.sh", "scripts/test.sh"]


def test_the_readme_shows_the_last_line_that_the_first_command_prints() -> None:
    assert LAST_LINE.search(README)


@pytest.mark.server
def test_the_first_command_speaks_and_its_server_stays_until_it_is_stopped(tmp_path: Path) -> None:
    environment = os.environ | {"STRETTO_PORT": str(free_row(3))}
    command = [str(ROOT / "scripts/speak.sh"), *shlex.split(COMMANDS[0])[1:]]
    try:
        first = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert first.returncode == 0, first.stderr
        assert LAST_LINE.fullmatch(first.stdout.strip().splitlines()[-1])
        assert (tmp_path / "speech.wav").stat().st_size > 32_000, "less than a second of 16-bit speech"
        again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert again.returncode == 0, again.stderr
        assert "starting the server" not in again.stdout
    finally:
        stopped = subprocess.run([command[0], "--stop"], env=environment, capture_output=True, text=True, timeout=100)
    assert stopped.returncode == 0, stopped.stderr


def test_the_second_command_runs_the_tests_it_is_given() -> None:
    command = [str(ROOT / shlex.split(COMMANDS[1])[0]), "tests/streams/test_delay.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
