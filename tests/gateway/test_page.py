"""The page's files are public, complete in the package, and have no external references."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stretto_gateway.page import FILES, FOLDER
from tests.gateway.conftest import Start

KEY = "sk-0123456789abcdef"
ADDRESS = re.compile(r"(?:https?:|wss?:)?//\w+(?:\.\w+)*", re.IGNORECASE)
NAMES = {"http://www.w3.org", "http://127.0.0.1", "http://localhost"}  # of SVG, and two that are not requested
SCRIPTS = [path for path in FILES.values() if path.suffix == ".js"]


class Elements(HTMLParser):
    """Parser that collects the name and attributes of all elements in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


PAGE = Elements((FOLDER / "index.html").read_text()).found


async def test_only_the_page_is_served_without_a_key(start: Start) -> None:
    async with (await start(keys=(KEY,))).http() as http:
        for path, file in FILES.items():
            answer = await http.get(path)
            assert (answer.status_code, answer.content) == (200, file.read_bytes()), path
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in (
            "/page/",
            "/page/..%2fapp.py",
            "/page/../app.py",
            "/page/app.py",
            "/page/index.html",
            "/v1/models",
        ):
            assert (await http.get(path)).status_code == 401, path


async def test_page_files_have_their_content_type(start: Start) -> None:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    async with (await start()).http() as http:
        for path, file in FILES.items():
            assert (await http.get(path)).headers["content-type"].startswith(kinds[file.suffix])


@pytest.mark.parametrize("path", FILES.values(), ids=lambda path: path.name)
def test_page_loads_nothing_from_other_hosts(path: Path) -> None:
    text = path.read_text()
    text = re.sub(r"(?m)(?:^|\s)// .*$", "", text)  # comments
    assert set(ADDRESS.findall(text)) <= NAMES
    assert "@import" not in text


def test_page_has_no_inline_scripts_or_styles() -> None:
    for tag, attributes in PAGE:
        assert tag != "style"
        assert tag != "script" or attributes["src"].startswith("page/")
        assert not any(name == "style" or name.startswith("on") for name in attributes), (tag, attributes)


def test_page_modules_exist_and_all_files_are_used() -> None:
    named = set(re.findall(r'(?:src|href)="page/([\w.]+)"', (FOLDER / "index.html").read_text()))
    for script in SCRIPTS:
        named |= set(re.findall(r'(?:from "\./|new URL\(")([\w.]+\.js)"', script.read_text()))
    assert named == {path.name for path in FILES.values()} - {"index.html"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_page_scripts_never_turn_text_into_html_or_code(script: Path) -> None:
    text = script.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert "localStorage" not in text, "a key outlives its tab"


def test_element_ids_used_by_scripts_exist_on_the_page() -> None:
    known = {attributes["id"] for _, attributes in PAGE if "id" in attributes}
    for script in SCRIPTS:
        assert set(re.findall(r'element\("([\w-]+)"\)', script.read_text())) <= known


def test_every_page_field_has_a_label_and_an_error_line() -> None:
    known = {attributes["id"] for _, attributes in PAGE if "id" in attributes}
    labelled = {attributes["for"] for tag, attributes in PAGE if tag == "label"}
    fields = [attributes for tag, attributes in PAGE if tag in ("input", "select", "textarea")]
    assert {field["id"] for field in fields} == labelled
    for field in fields:
        told = field["aria-describedby"].split()
        assert f"{field['id']}-error" in told
        assert set(told) <= known
