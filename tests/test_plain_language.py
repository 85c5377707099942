"""Plain-language tests: docstrings name their subject instead of paraphrasing it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.sources import parsed, statements

pytestmark = pytest.mark.together("sources")  # one process parses them
ROOT = Path(__file__).parents[1]
# Largest permitted share of docstrings with a marker, by folder. Lower it when a folder improves; never raise it.
MOST = {
    "python_backend/stretto/codecs": 0.006,
    "python_backend/stretto/decoder": 0.0,
    "python_backend/stretto/engine": 0.002,
    "python_backend/stretto/records": 0.0,
    "python_backend/stretto/streams": 0.0,
    "python_backend/stretto/triton_io": 0.0,
    "python_backend": 0.002,
    "gateway": 0.004,
    "contract": 0.0,
    "client": 0.0,
    "scripts": 0.0,
    "deploy": 0.0,
    "training": 0.0,
    "benchmarks": 0.0,
    "lab": 0.0,
    "plugins": 0.003,
    "tests": 0.005,
}
# The same for documents: shares of paragraphs, list items, headings and table rows, code left out.
MOST_IN_DOCUMENTS = {
    ("README.md",): 0.02,
    ("docs/**/*.md", "plugins/*/docs/*.md"): 0.005,
    ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"): 0.015,
    ("benchmarks/results/**/*.md",): 0.006,
}
CODE = re.compile(r"^```.*?^```|^    [^\n]*$", re.MULTILINE | re.DOTALL)
BREAK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-|#]|\d+\. ))")
MARKER = re.compile(
    r"^(What|Who|Whose|Whether|Where|Of|One that|Those|It has|That)\b"
    r"|\b(told|tells?|says|said|hears?|heard|stands|nobody|somebody|whoever|gives? way|so (many|much|long)"
    r"|in the place of|by and by|amid|upon|refused by name)\b"
    r"|\b(what|who) (it|they|he|is|are|has|have|comes?|stands|was)\b",
    re.MULTILINE,
)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def docstrings_of(path: Path) -> list[str]:
    """Return all docstrings in a Python file."""
    nodes = (node for node in (parsed(path), *statements(path)) if isinstance(node, DOCUMENTED))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def docstrings(folder: Path) -> list[str]:
    """Return all docstrings in the Python files below `folder`."""
    return [text for path in sorted(folder.rglob("*.py")) for text in docstrings_of(path)]


def share_of_markers(texts: list[str]) -> float:
    """Return the share of `texts` that contain a marker of unclear language."""
    return sum(MARKER.search(text) is not None for text in texts) / len(texts)


# Tests are almost half of all code, and take seconds to parse.
@pytest.mark.parametrize(
    "folder", [pytest.param(name, marks=pytest.mark.slow) if name == "tests" else name for name in MOST]
)
def test_docstrings_are_in_plain_language(folder: str) -> None:
    assert share_of_markers(docstrings(ROOT / folder)) <= MOST[folder]


def blocks(document: str) -> list[str]:
    """Return the blocks of a document, each in one line without its list, table or heading mark."""
    parts = (re.sub(r"^\s*(?:[-#|]+|\d+\.)\s*", "", part) for part in BREAK.split(CODE.sub("", document)))
    return [" ".join(part.split()) for part in parts if part.strip()]


def test_documents_are_in_plain_language() -> None:
    over = {}
    for patterns, most in MOST_IN_DOCUMENTS.items():
        texts = [block for pattern in patterns for path in ROOT.glob(pattern) for block in blocks(path.read_text())]
        if (share := share_of_markers(texts)) > most:
            over[patterns] = f"{share:.1%} > {most:.0%}"
    assert not over, over


def test_markdown_blocks_are_extracted() -> None:
    text = "# Title\n\nOne\nparagraph.\n\n- item\n- other\n\n    code says\n\n```sh\ntell\n```\n| cell |\n"
    assert blocks(text) == ["Title", "One paragraph.", "item", "other", "cell |"]


def test_plain_language_markers_are_counted() -> None:
    assert share_of_markers(["What it is told of who has left."]) == 1.0
    assert share_of_markers(["Client-disconnect flags shared with the model processes.", "Return the id."]) == 0.0
