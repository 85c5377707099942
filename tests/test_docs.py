"""The documentation site: a strict build, its links, and the table of options from the schema."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import docs_site
from stretto_contract.schema import OptionsRecord

ROOT = Path(__file__).parents[1]


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site in `folder`; any warning is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run([*command, "--site-dir", str(site)], capture_output=True, text=True, timeout=600, env=quiet)


@pytest.mark.slow
def test_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    loaded = re.compile(
        r"<(?:script|img|iframe|audio)[^>]*\ssrc=\"?(https?:[^\s\">]+)|<link[^>]*\shref=\"?(https?:[^\s\">]+)"
    )
    assert not {match[1] or match[2] for page in pages.values() for match in loaded.finditer(page)}
    assert "SpeechClient" in (tmp_path / "python" / "index.html").read_text(), "no signatures from the source"
    assert "Returns:" in (tmp_path / "python" / "index.html").read_text() or "Parameters:" in "".join(pages.values())


def test_repository_links_are_converted_to_site_links() -> None:
    text = "[a](docs/api.md#speech) [![b](docs/page_light.png)](docs/page.md) [c](LICENSE) [d](none.md)\n\n"
    code = "    [e](docs/api.md)\n"
    expected = "[a](api.md#speech) [![b](page_light.png)](page.md) c [d](none.md)\n\n"
    assert docs_site.converted_links(text + code, "README.md") == expected + code
    assert (
        docs_site.converted_links("[a](../benchmarks/README.md)", "docs/api.md")
        == "[a](repository/benchmarks/README.md)"
    )
    assert docs_site.converted_links("[a](../../docs/api.md)", "benchmarks/results/engine.md") == "[a](../../../api.md)"


def test_named_tests_exist() -> None:
    for page in (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/docs/*.md")):
        for path, name in re.findall(r"`((?:plugins/\w+/)?tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
            text = (ROOT / path).read_text()
            assert f"def {name}(" in text or not name, f"{page.name}: {path}::{name}"


def test_page_about_the_engine_is_short() -> None:
    """Details of a single family are on that family's page, settings on the page for operators."""
    assert len((ROOT / "docs" / "engine.md").read_text().split()) <= 3500


def test_options_table_matches_the_schema() -> None:
    page = docs_site.OPTIONS_PAGE.read_text()
    assert page == docs_site.page_with_table(page), "run python -m scripts.docs_site"
    names = [name for name, *_ in docs_site.option_rows(OptionsRecord)]
    assert "audio.ras_window" in names
    assert set(OptionsRecord.__annotations__) <= set(names)


def test_hooks_and_workflow_run_existing_programs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy"}
    locked = (ROOT / "requirements" / "dev.txt").read_text()
    for hook in hooks:
        program = Path(hook["entry"].split()[0])
        assert program.parent == Path(".venv/bin")
        assert f"\n{program.name}==" in locked
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
