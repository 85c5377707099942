"""The core without any plug-in: it lists its families, reads requests, and generates speech."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import by_night

# Importing `tests.without_plugins` would hide the plug-ins from this process too.
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
FAMILIES = {"bagpiper", "csm", "opuslm", "opuslm_dialogue", "qwen3_tts", "tiny", "vita_audio"}


def run(*words: str) -> str:
    """Run Python in the repository; return its output, which may not report an error."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_core_lists_only_its_own_families() -> None:
    listed = run("-c", "import tests.without_plugins; from stretto.entry_points import main; main([])")
    lines = [line.split() for line in listed.splitlines()]
    assert {name for group, name, *_ in lines if group == "family"} == FAMILIES


@pytest.mark.parametrize(
    "path", ["preprocessing/test_request.py", *by_night("families/tiny", "families/csm", "engine/test_bundled.py")]
)
def test_core_passes_tests_of_its_interface(path: str) -> None:
    said = run("-m", "pytest", "-p", "tests.without_plugins", "-m", "not nightly", f"tests/{path}")
    assert "[100%]" in said


def test_core_tests_import_no_plugin() -> None:
    packages = "|".join(sorted(path.name for path in ROOT.glob("plugins/*/stretto_*")))
    statement = re.compile(rf"^ *(?:from|import) (?:plugins|{packages})\b", re.MULTILINE)
    files = [path for path in ROOT.glob("tests/**/*.py") if statement.search(path.read_text())]
    assert [str(path.relative_to(ROOT)) for path in files] == []


@pytest.mark.nightly
def test_core_tests_are_collected() -> None:
    run("-m", "pytest", "-p", "tests.without_plugins", "--collect-only", "-q", "tests")


def test_plugin_is_hidden_from_a_process() -> None:
    (name, *_) = sorted(path.name for path in ROOT.glob("plugins/*/stretto_*"))
    program = f"import tests.without_plugins, importlib; importlib.import_module({name!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert f"No module named {name!r}: it is hidden" in done.stderr
