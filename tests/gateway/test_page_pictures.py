"""The documentation's pictures of the page show today's page and bundled model.

    STRETTO_PICTURES=1 python -m pytest tests/gateway/test_page_pictures.py    # takes the pictures again

Each picture stores the texts that it shows.
"""

import asyncio
import io
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stretto.launcher.first_request import model_profile
from stretto.launcher.installation import bundled_repository
from tests.browser import EXECUTABLE, Tab, chromium, driving
from tests.client.fake_server import Chunk, Until
from tests.gateway.conftest import Start

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "It is twenty past nine and the garden door is open."
SAMPLE = DOCS / "samples" / "garden_door.mp3"
SHOWN = "Shown texts"  # name of the PNG's text
MAX_BYTES = 40_000
PICTURES: dict[str, dict[str, Any]] = {
    "page_light": {"width": 760, "scheme": "light"},
    "page_dark": {"width": 760, "scheme": "dark", "opens": "#compare summary"},
    "page_phone": {"width": 390, "scheme": "light"},
}
# The visible texts, without what differs from one visit to the next: times, the address and the chosen seed.
TEXTS = r"document.body.innerText.replace(/http:\S+/g, '').replace(/[\d.]+ s\b/g, '').split(/\s*\n\s*/).filter(Boolean)"
HEIGHT = "document.documentElement.scrollHeight"
WORD = "garden"


def profile() -> dict[str, Any]:
    return model_profile(bundled_repository())


def texts_of(name: str) -> list[str]:
    """Return the texts that a stored picture shows."""
    with Image.open(DOCS / f"{name}.png") as image:
        texts: list[str] = json.loads(image.info.get(SHOWN, "[]"))
    return texts


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_the_bundled_model(name: str) -> None:
    shown, model = texts_of(name), profile()
    assert f"{model['family']} · {model['sample_rate'] / 1000:g} kHz" in shown
    details = model["voice_details"].items()
    assert {f"{name} ({facts['gender']}, {facts['language']})" for name, facts in details} <= set(shown)
    assert (DOCS / f"{name}.png").stat().st_size <= MAX_BYTES


def speech(rate: int) -> list[Chunk | Until]:
    """Return a reply with a sample of the bundled model, which does not end, so that the page keeps showing it."""
    pcm, sample_rate = soundfile.read(SAMPLE, dtype="int16")
    assert sample_rate == rate
    words = re.findall(r"[a-z]+", TEXT.lower())
    at_s, per_letter_s = 0.15, len(pcm) / rate / (len(TEXT) + 2)
    spoken = list[dict[str, Any]]()
    for word in words:
        spoken.append({"word": word, "start_s": at_s})
        at_s += (len(word) + 1) * per_letter_s
    steps = list[Chunk | Until]()
    for index, start in enumerate(range(0, len(pcm), rate // 2)):
        part = pcm[start : start + rate // 2]
        span = start / rate, (start + len(part)) / rate
        event = {"sample_rate": rate, "start_s": span[0], "duration_s": span[1] - span[0]}
        event["words"] = [each for each in spoken if span[0] <= each["start_s"] < span[1]]
        steps.append(Chunk(index, len(part), is_16_bit=True, pcm=part, more=event))
    return [*steps, Until(asyncio.Event())]


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    with chromium(tmp_path) as address:
        async with driving(address) as browser:
            yield await browser.tab()


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.together("chromium")
@pytest.mark.skipif(not EXECUTABLE, reason="no Chromium on the PATH; on Debian: apt-get install chromium")
@pytest.mark.parametrize("name", PICTURES)
async def test_pictures_show_the_page(start: Start, tab: Tab, name: str) -> None:
    model, options = profile(), PICTURES[name]
    running = await start(speech(model["sample_rate"]), model)
    await resize(tab, options["width"], 900)
    scheme = {"name": "prefers-color-scheme", "value": options["scheme"]}
    await tab.send("Emulation.setEmulatedMedia", features=[scheme])
    await tab.open(running.url, "document.querySelector('#speak').checkVisibility()")
    await tab.write("#text", TEXT)
    await tab.write("#seed", "7")
    if "opens" in options:
        await tab.click(options["opens"])
    await tab.click("#speak-button")
    await tab.wait("document.querySelector('#first-sound').innerText !== '–'")
    height = await tab.value(HEIGHT)
    await resize(tab, options["width"], height)
    await tab.value("scrollTo(0, 0)")
    await tab.wait(f"[...document.querySelectorAll('.said')].some((each) => each.innerText === '{WORD}')")
    await tab.wait("parseFloat(document.querySelector('#length').innerText) > 2")
    shown: list[str] = await tab.value(TEXTS)
    if os.environ.get("STRETTO_PICTURES"):
        await tab.picture(DOCS / f"{name}.png")
        store(DOCS / f"{name}.png", shown)
    assert texts_of(name) == shown, "take the pictures again; see this file's docstring"


async def resize(tab: Tab, width: int, height: int) -> None:
    await tab.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
    )


def store(path: Path, shown: list[str]) -> None:
    """Store a picture again with few colours, and with the texts that it shows."""
    texts = PngInfo()
    texts.add_itxt(SHOWN, json.dumps(shown, ensure_ascii=False))
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=texts)
