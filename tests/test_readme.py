"""The commands of the README, as printed there."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from stretto import entry_points
from stretto.cli import COMMANDS, OF_A_RECEIPT, speech_client
from stretto.convert import command as convert
from stretto.convert import make_repository
from stretto.convert.release import convertible
from stretto.launcher import config
from stretto.releases import run, show
from stretto.releases.install import pull_arguments
from stretto.releases.show import server_arguments
from stretto.verification import command as verify
from stretto_client.arguments import parse
from stretto_client.capacity import command as capacity
from stretto_client.receipt_command import key_arguments, verify_arguments
from stretto_gateway import command as gateway
from stretto_gateway import pronunciation_command, voice_command
from stretto_gateway.jobs import command as job_command
from tests.ports import free_row

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((*(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/docs/*.md")))]
README = PAGES[0].read_text()
FIRST_BLOCK = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
assert FIRST_BLOCK, "the README shows no commands"
SCRIPTS = [shlex.split(line, comments=True) for line in FIRST_BLOCK[1].splitlines()]
LAST_LINE = re.compile(
    r"speech\.wav: [\d.]+ s of audio, first audio after [\d.]+ s, real-time factor [\d.]+, seed \d+, guidance [\d.]+"
)


def shown(page: Path) -> list[list[str]]:
    """Return the arguments of `stretto` in every command line of a page, except lines that only hint at flags."""
    joined = page.read_text().replace("\\\n", " ")
    lines = [
        line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
        for line in joined.splitlines()
        if line.startswith("    ")
    ]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("stretto ")]
    return [words[1:] for words in commands if not any("…" in word for word in words)]


def serve_flags(words: list[str]) -> argparse.Namespace:
    if "--model" in words:
        _, words = run.model_arguments(words)
    flags, passed = config.parser().parse_known_args(words)
    of_routes, passed = config.split_route_flags(passed)
    assert not passed, f"{passed} would go to tritonserver"
    gateway.arguments().parse_args(["--server", "localhost:8001", *of_routes])
    return flags


def run_flags(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of `stretto run`, and those after `--`, which are the server's."""
    own = list(takewhile(lambda word: word != "--", words))
    serve_flags(["--gateway", *words[len(own) + 1 :]])
    return run.parser_of(speech_client()).parse_args(own)


def convert_flags(words: list[str]) -> argparse.Namespace:
    """Parse the arguments of `stretto convert` as if the example package were installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "convertible", lambda: [*convertible(), "orpheus"])
        return convert.arguments(words)


PARSERS: dict[str, Callable[[list[str]], argparse.Namespace]] = {
    "serve": serve_flags,
    "gateway": gateway.arguments().parse_args,
    "convert": convert_flags,
    "make-repository": make_repository.arguments,
    "families": entry_points.arguments,
    "voices": voice_command.arguments,
    "pronunciations": pronunciation_command.arguments,
    "read": job_command.arguments,
    "run": run_flags,
    "pull": pull_arguments,
    "list": show.list_arguments,
    "rm": show.remove_arguments,
    "ps": server_arguments,
    "show": show.arguments,
    "verify": lambda words: (verify_arguments if set(OF_A_RECEIPT) & {*words} else verify.arguments)(words),
    "signing-key": key_arguments,
    "capacity": capacity.parse,
}


def test_readme_shows_one_speak_and_one_test_command() -> None:
    assert [words[0] for words in SCRIPTS] == ["scripts/speak.sh", "scripts/test.sh"]
    for script, *_ in SCRIPTS:
        assert os.access(ROOT / script, os.X_OK)


def test_readme_shows_the_output_of_the_first_command() -> None:
    assert LAST_LINE.search(README)


def test_docs_pages_show_every_command() -> None:
    assert {words[0] for page in PAGES for words in shown(page)} == set(COMMANDS)


def test_readme_is_short_and_links_to_every_page() -> None:
    assert len(README.split()) <= 1200
    linked = set(re.findall(r"\]\(((?:docs|benchmarks|plugins)/[^)#]+|[A-Z]+\.md)", README))
    pages = {str(page.relative_to(ROOT)) for page in PAGES[1:]} - {"docs/families/sources.md"}
    assert pages | {"CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"} <= linked
    assert not re.search(r"`[\w/.-]+\.md`", README), "a page's name without a link to it"


@pytest.mark.parametrize("words", [words for page in PAGES for words in shown(page)], ids=shlex.join)
def test_documented_flags_exist(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith((".wav", ".flac")):
            Path(word).touch()
    name, *rest = words
    if words[:2] == ["convert", convert.ALIGNER]:
        assert convert.aligner_arguments(words[2:])
        return
    assert PARSERS[name](rest) if name in PARSERS else parse(words, "stretto")


def test_files_named_in_the_install_docs_exist() -> None:
    named = set(re.findall(r"requirements/\w+\.txt", (ROOT / "docs" / "install.md").read_text()))
    assert named >= {"requirements/overrides.txt", "requirements/embedded.txt"}
    assert all((ROOT / name).is_file() for name in named)


@pytest.mark.server
@pytest.mark.nightly  # by day scripts/test_speak.py, and tests/server
def test_readme_command_speaks_and_its_server_runs_until_stopped(tmp_path: Path) -> None:
    """The set-up is skipped, because this test already runs in its environment."""
    environment = os.environ | {"STRETTO_PORT": str(free_row(3))}
    stretto = [sys.executable, "-m", "stretto"]
    command = [*stretto, "speak", "--out", "speech.wav", *SCRIPTS[0][1:]]
    try:
        first = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert first.returncode == 0, first.stderr
        assert "starting the server" in first.stderr
        assert LAST_LINE.fullmatch(first.stdout.strip())
        assert (tmp_path / "speech.wav").stat().st_size > 32_000, "less than a second of 16-bit speech"
        again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert (again.returncode, again.stderr) == (0, "")
    finally:
        stop = [*stretto, "serve", "--stop"]
        stopped = subprocess.run(stop, env=environment, capture_output=True, text=True, timeout=100)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr == "[serve] stopped\n"
