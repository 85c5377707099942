"""The plug-ins in pipelines of their frameworks, against a real server with the bundled model.

These tests run only at night, because the frameworks are not installed for development.
"""

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.environments import UV, Client
from tests.clients.test_real_clients import CLIENTS, fault, url

__all__ = ["url"]
pytestmark = [pytest.mark.server, pytest.mark.nightly]
FOLDER = Path(__file__).parent
TURNS = ("first turn", "second turn", "one connection", "interrupted", "connection after an interruption")
FAULTS = ("after a restart", "after a restart within a reply", "unknown voice", "text that is too long", "example")
PLUGINS = {
    "pipecat": Client(
        CLIENTS["Pipecat"].environment,
        FOLDER / "pipecat" / "tests" / "pipeline.py",
        (*TURNS, *FAULTS, "report", "settings", "speech within a reply"),
    ),
    "livekit": Client(
        CLIENTS["LiveKit Agents"].environment,
        FOLDER / "livekit" / "tests" / "session.py",
        (*TURNS, *FAULTS, "reports", "metrics", "whole text", "speed", "blank text", "no server"),
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_speaks_in_its_frameworks_pipeline(name: str, url: str, tmp_path: Path) -> None:
    plugin = PLUGINS[name]
    folders = (FOLDER, FOLDER / name, FOLDER / name / "examples", Path(environments.__file__).parent)
    variables = os.environ | {"PYTHONPATH": ":".join(map(str, folders))}
    command = plugin.command(url, tmp_path / "none.wav", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    results = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"step"'):
            result = json.loads(line)
            results[result["step"]] = result
    faults = {step: fault(results[step]) if step in results else "not reported" for step in plugin.steps}
    wrong = {step: why for step, why in faults.items() if why}
    assert not wrong, json.dumps(wrong, indent=1) + done.stderr[-4000:]
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(("name", "package"), [("pipecat", "pipecat_stretto"), ("livekit", "livekit/plugins/stretto")])
def test_wheel_has_the_package_and_leaves_namespaces_open(name: str, package: str, tmp_path: Path) -> None:
    source = shutil.copytree(FOLDER / name, tmp_path / "source")  # setuptools writes into it
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [Path(path) for path in zipfile.ZipFile(wheel).namelist()]
    modules = {path for path in names if path.suffix == ".py"}
    assert modules == {Path(package) / "__init__.py", Path(package) / "tts.py"}
