"""The sections of docs/published_models.md, whose commands download what the converter needs."""

import json
import shlex
import subprocess
import sys
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import docs_site
from stretto.errors import CheckpointError
from stretto.releases.catalogue import ReleaseEntry, RepositoryFiles
from stretto.releases.show import manual_commands, section, wrapped
from tests.hub import Hub
from tests.releases.test_table import ENTRIES

SECTIONS = docs_site.release_sections()
UNNEEDED = "unneeded/weights.onnx"
# Runs each command line of a JSON list as the program `hf` does, and prints a list of exit statuses.
DRIVER = """
import json, sys
from huggingface_hub.cli.hf import main
statuses = []
for words in json.load(sys.stdin):
    sys.argv = words
    try:
        main()
        statuses.append(0)
    except SystemExit as error:
        statuses.append(error.code or 0)
print(json.dumps(statuses))
"""


def test_site_adds_the_sections_to_the_page() -> None:
    source = docs_site.ROOT / docs_site.RELEASES_PAGE
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(source)))
    text = docs_site.on_page_markdown(source.read_text(), page)
    assert text.startswith("# Serve published weights\n")
    assert text.endswith(docs_site.converted_links(SECTIONS, docs_site.RELEASES_PAGE))


def test_every_release_is_on_the_page() -> None:
    assert not [name for name in ENTRIES if f"| `{name}`" not in SECTIONS]


def test_prose_may_name_only_known_releases() -> None:
    with pytest.raises(CheckpointError, match="expected the name of a release, got 'other'"):
        section("## A\n<!-- commands other -->\n", [])


def commands_of_page() -> list[list[str]]:
    """Return the commands of the sections as words, with continued lines joined."""
    lines = SECTIONS.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(("    hf download", "    stretto convert"))]


def names_of(source: RepositoryFiles) -> dict[str, bytes]:
    """Return small files whose names match the source's patterns, and one that the release does not need."""
    names = [pattern.replace("*", "x") for pattern in source.files]
    names += ["transformers.safetensors.index.json"] * ("transformers*" in source.files)
    return {name: name.encode() for name in [*names, UNNEEDED]}


@pytest.mark.slow
def test_commands_download_what_the_converter_needs(tmp_path: Path) -> None:
    """Each `hf download` of the page runs as printed, against a hub that has files of the published names."""
    commands = commands_of_page()
    downloads = [words for words in commands if words[0] == "hf"]
    assert len(downloads) > 25
    with Hub() as hub:
        sources = [source for entry in ENTRIES.values() for source in entry.repositories]
        files: dict[str, dict[str, bytes]] = {}
        for source in sources:
            files[source.repository] = files.get(source.repository, {}) | names_of(source)
        for source in sources:
            if source.repository not in hub.repositories:
                hub.add(source.repository, files[source.repository])
            if source.revision is not None:
                hub.repositories[source.repository].pin(source.revision)
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps(downloads),
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(downloads), done.stderr
    assert "Ignoring" not in done.stderr, "a pattern was taken for something else"
    expected = {}
    for words in downloads:
        folder, patterns = words[words.index("--local-dir") + 1], files[words[2]]
        wanted = [word for option, word in pairwise(words) if option == "--include"]
        names = {name for name in patterns if any(fnmatchcase(name, pattern) for pattern in wanted)}
        expected |= {tmp_path / folder / name: name for name in names}
    missing = [str(path) for path in expected if not path.is_file()]
    assert not missing
    assert not list(tmp_path.glob(f"*/{UNNEEDED}"))
    for words in commands:
        if words[0] == "stretto":
            inputs = [tmp_path / word for option, word in pairwise(words) if is_path(option, word)]
            assert inputs
            assert not [str(path) for path in inputs if not path.exists()]


def is_path(option: str, word: str) -> bool:
    """Return True if a word of `stretto convert` is a file or folder that the command reads."""
    return option in ("--model", "--config", "--tokenizer", "--codec", "--ssl-tokenizer") and word[:2] != "--"


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_each_release_has_commands(entry: ReleaseEntry) -> None:
    """Each pattern has an option of its own, because `hf` takes further words for names of files."""
    *downloads, convert = (shlex.split(" ".join(words)) for words in manual_commands(entry))
    for words, source in zip(downloads, entry.repositories, strict=True):
        patterns = [word for option, word in pairwise(words) if option == "--include"]
        assert patterns == list(source.files)
        assert len(words) == 5 + 2 * len(patterns) + 2 * (source.revision is not None)
    assert convert[:2] == ["stretto", "convert"]
    assert convert[-2:] == ["--out", entry.name]


def test_long_commands_are_continued_between_options() -> None:
    words = ["hf download a/b", *(f'--include "{number:050}"' for number in range(3))]
    lines = wrapped(words)
    assert len(lines) == 3
    assert all(len(line) <= 118 for line in lines)
    assert lines[0].endswith(" \\")
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == shlex.split(" ".join(words))
