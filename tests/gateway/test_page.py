"""The page's files are public, complete in the package, and have no external references."""

import json
import re
import shutil
import subprocess
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


PLAYER = """
import { Playback, RATE } from %(player)s;

let now = 0;
const sources = new Set();
globalThis.AudioContext = class {
  state = "running"; destination = null; outputLatency = 0.01;
  get currentTime() { return now; }
  resume() { return Promise.resolve(); }
  suspend() {}
};
globalThis.GainNode = class { gain = { setTargetAtTime() {} }; connect() {} };
globalThis.AudioBuffer = class { constructor({ length }) { this.length = length; } copyToChannel() {} };
globalThis.AudioBufferSourceNode = class {
  constructor(_, { buffer }) { this.length = buffer.length; }
  connect() {}
  start(at) { this.endsAt = at + this.length / RATE; sources.add(this); }
  stop() {}
};
const results = {};
for (const keeps of [false, true]) {
  const playback = new Playback({ keeps });
  await Promise.resolve();
  for (let frame = 0; frame < %(frames)d; frame++) {
    playback.add(new Int16Array(1920));
    now += frame %% 1000 === 999 ? 1 : 0.08;  // sometimes the speech is late
    for (const source of [...sources].filter(({ endsAt }) => endsAt <= now)) {
      sources.delete(source);
      source.onended();
    }
    if (frame %% 500 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  now += 100;
  globalThis.gc();
  const { arrayBuffers } = process.memoryUsage();
  const numPlayed = playback.numPlayed;
  for (const source of [...sources]) (sources.delete(source), source.onended());
  playback.end();
  await playback.finished;
  results[keeps] = { arrayBuffers, numPlayed, numKept: playback.chunks.length };
}
console.log(JSON.stringify(results));
process.exit(0);
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_call_audio_is_released_after_playback(tmp_path: Path) -> None:
    """Five minutes of a conversation are played in the player with a simulated sound device and clock."""
    script = tmp_path / "play.mjs"
    num_frames = 4_000
    player = tmp_path / "player.mjs"
    player.write_text((FOLDER / "player.js").read_text())
    script.write_text(PLAYER % {"player": json.dumps(player.as_uri()), "frames": num_frames})
    done = subprocess.run(["node", "--expose-gc", str(script)], capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    assert results["true"]["numKept"] == num_frames
    assert results["false"]["numKept"] == 0
    assert results["true"]["arrayBuffers"] > 2 * 1920 * num_frames
    assert results["false"]["arrayBuffers"] < 10_000_000
    assert results["false"]["numPlayed"] == results["true"]["numPlayed"] == 1920 * num_frames
