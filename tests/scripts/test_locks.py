"""Lock files have hashes, which the set-up requires, and no package that would be built from source."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from scripts import advisories
from tests.patience import PATIENCE_S
from tests.scripts.test_setup import write_clone

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt") if not path.name.startswith("overrides"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_locked_package_has_hashes(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    assert entries
    for entry in entries:
        name, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[\w.-]+==\S+", name), name
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", each) for each in hashes), name


@pytest.mark.parametrize("name", ["embedded", "dev"])
def test_cpu_torch_has_hashes_for_both_python_versions(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    (torch,) = re.findall(r"^torch==.*\n(?:    --hash.*\n)+", text, re.MULTILINE)
    assert torch.count("--hash=") >= 2


def test_setup_requires_hashes_and_builds_nothing(tmp_path: Path) -> None:
    """Everything from an index is verified; only this package itself is built."""
    write_clone(tmp_path)
    for name in ("python", "uv"):  # .venv has no uv yet, so both are called
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\n[ "$1" != -c ] || exit 0\necho "$@" >> {tmp_path}/calls\n'
            f'[ "$2" != venv ] || {{ mkdir -p "$3/bin"; cp {tmp_path}/python "$3/bin/python"; }}\n'
            f'[ "$2" != pip ] || cp {tmp_path}/uv {tmp_path}/.venv/bin/uv\n'
        )
        program.chmod(0o755)
    environment = os.environ | {"PYTHON": "./python"}
    subprocess.run([tmp_path / "scripts" / "setup.sh"], env=environment, check=True, timeout=PATIENCE_S)
    installs = [line for line in (tmp_path / "calls").read_text().splitlines() if " install " in line]
    assert len(installs) == 3
    for install in installs[:2]:
        assert "--require-hashes" in install
        assert "--no-build" in install or "--only-binary :all:" in install
    assert installs[2].endswith("--no-build-isolation --editable .")


def test_workflow_and_nightly_name_other_code_by_whole_commits() -> None:
    """A tag or a short prefix of a commit may be moved to other code."""
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    clones = re.findall(r"^ +clone \S+ (\S+)", (ROOT / "scripts" / "nightly.sh").read_text(), re.MULTILINE)
    assert actions
    assert clones
    for commit in [*(each.partition("@")[2] for each in actions), *clones]:
        assert re.fullmatch(r"[0-9a-f]{40}", commit), commit


@pytest.mark.parametrize(
    ("events", "version", "expected"),
    [
        ([{"introduced": "0"}, {"fixed": "3.9.2"}], "3.9.1", True),
        ([{"introduced": "0"}, {"fixed": "3.9.2"}], "3.9.2", False),
        ([{"introduced": "0"}, {"fixed": "3.9.2"}], "3.10", False),
        ([{"introduced": "2.0"}, {"last_affected": "2.4"}], "2.4", True),
        ([{"introduced": "2.0"}, {"last_affected": "2.4"}], "2.4.1", False),
        ([{"introduced": "2.0"}, {"last_affected": "2.4"}], "1.9", False),
        ([{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "4"}], "3.5", True),
        ([{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "4"}], "2.5", False),
        ([{"introduced": "3"}], "9", True),
    ],
)
def test_affected_versions_are_those_between_the_events(
    events: list[dict[str, str]], version: str, expected: bool
) -> None:
    affected: dict[str, Any] = {"ranges": [{"type": "GIT", "events": []}, {"type": "ECOSYSTEM", "events": events}]}
    assert advisories.is_affected(Version(version), affected) == expected
    assert advisories.is_affected(Version(version), affected | {"versions": [version]})


def test_audit_names_package_file_and_advisory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    affected = [{"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2"}]}]}]
    record = {"id": "PYSEC-1", "aliases": ["CVE-1"], "affected": affected}
    (folder / "PYSEC-1.yaml").write_text(yaml.safe_dump(record))
    (folder / "PYSEC-2.yaml").write_text(
        yaml.safe_dump(record | {"id": "PYSEC-2", "withdrawn": "2026-01-01T00:00:00Z"})
    )
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("Some_Package==1.9+cpu \\\n    --hash=sha256:00\n")
    new.write_text("Some_Package==2.0 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr("sys.argv", ["advisories", str(tmp_path), str(old), str(new)])
    assert advisories.main() == 1
    assert capsys.readouterr().out.splitlines()[0] == "some-package 1.9 (old.txt): PYSEC-1 CVE-1"
    monkeypatch.setattr("sys.argv", ["advisories", str(tmp_path), str(new)])
    assert advisories.main() == 0
