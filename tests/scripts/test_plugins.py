"""A plug-in counts as changed if a file of its own, a file that it imports, or a version of a package changed."""

from pathlib import Path

import pytest

from scripts import plugins

OWN = "plugins/voice/stretto_voice/family.py"
FILES = {
    "plugins/voice/pyproject.toml": "",
    "plugins/voice/docs/voice.md": "",
    "plugins/voice/tests/test_voice.py": "from tests.voices import ANY\n",
    "plugins/voice/tests/voice.npz": "",
    OWN: "import stretto.engine\n\n\ndef late():\n    from stretto.family import base, plugin\n",
    "python_backend/stretto/family/base.py": "import stretto.family.far\n",
    "python_backend/stretto/family/plugin.py": "",
    "python_backend/stretto/family/far.py": "",
    "python_backend/stretto/engine/__init__.py": "",
    "python_backend/stretto/other.py": "",
    "requirements/dev.txt": "",
    "tests/voices.py": "",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    monkeypatch.setattr(plugins, "RECORD", tmp_path / "plugins" / "tested.json")
    monkeypatch.setattr(plugins, "LOCK", tmp_path / "requirements" / "dev.txt")
    return tmp_path


def written(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert plugins.main([*words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_plugin_has_changed_if_a_file_that_decides_about_its_tests_has(
    tree: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(capsys) == "\n", "its tests have never passed"
    plugins.RECORD.write_text(written(capsys, "digests"))
    assert written(capsys) == "voice\n"
    (tree / name).write_text("# other\n")
    unrelated = name.endswith(("voice.md", "far.py", "other.py"))
    assert written(capsys) == ("voice\n" if unrelated else "\n")


def test_docstring_is_no_change(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugins.RECORD.write_text(written(capsys, "digests"))
    (tree / OWN).write_text(f'"""Family."""\n\n{FILES[OWN]}'.replace("late():\n", 'late():\n    """Import."""\n\n'))
    assert written(capsys) == "voice\n"
    (tree / OWN).write_text(f'{FILES[OWN]}NAME = """Family."""\n')
    assert written(capsys) == "\n"


def test_new_file_of_a_plugin_is_a_change(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugins.RECORD.write_text(written(capsys, "digests"))
    (tree / "plugins/voice/stretto_voice/model.py").touch()
    assert written(capsys) == "\n"


@pytest.mark.parametrize(("body", "code"), [("assert True", 0), ("assert False", 1)])
def test_only_passed_tests_are_recorded(tree: Path, body: str, code: int) -> None:
    (tree / "plugins/voice/tests/test_voice.py").write_text(f"def test_voice(): {body}\n")
    assert plugins.main(["test"]) == code
    assert plugins.unchanged() == (["voice"] if code == 0 else [])
