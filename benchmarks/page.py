"""Time to the first sound on the web page and on the command line, alternately with the same text and seed.

    python -m benchmarks.page --rounds 15

The benchmark starts its own server, gateway and Chromium on this host. The page's time is its own measurement, from the
click to the first sample at the loudspeaker, including the delay of the audio device as the browser reports it. The
command line's time is that of its summary, from the request to the first audio received.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.browser import Tab, chromium, driving
from benchmarks.gateway import gateway
from benchmarks.harness import append_result, command_line, serving, stop_on_sigterm

TEXT = "It is twenty past nine and the garden door is open."
IS_OPEN = "document.querySelector('#speak').checkVisibility()"


async def by_page(tab: Tab, seed: int) -> float:
    """Return the seconds to the first sound on the page."""
    await tab.write("#seed", str(seed))
    await tab.click("#speak-button")
    await tab.wait(f"document.querySelector('#used-seed').textContent === '{seed}'")
    await tab.reads("#speak-status", "Finished")
    return float((await tab.text("#first-sound")).removesuffix(" s"))


def by_command_line(server: str, seed: int, folder: Path) -> float:
    """Return the seconds from the command's request to its first audio, without its start-up time."""
    command = [sys.executable, "-m", "stretto_client", "speak", TEXT, "--json", "--play", "off"]
    flags = ["--server", server, "--seed", str(seed), "--out", str(folder / "speech.wav")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["ttfa_s"])


async def measure(server: str, rounds: int) -> dict[str, Any]:
    """Return medians of both ways and of the differences of pairs, and the first click of a new tab."""
    with tempfile.TemporaryDirectory() as folder, gateway(server) as (url, _), chromium(Path(folder)) as address:
        async with driving(address) as browser:
            tab = await browser.tab()
            await tab.open(url, IS_OPEN)
            await tab.write("#text", TEXT)
            by_command_line(server, 1, Path(folder))  # warms up the server but not the page
            first_click_s = await by_page(tab, 1)
            page_s, line_s = [], []
            for seed in range(2, 2 + rounds):
                page_s.append(await by_page(tab, seed))
                line_s.append(await asyncio.to_thread(by_command_line, server, seed, Path(folder)))
    more_ms = [1000 * (page - line) for page, line in zip(page_s, line_s, strict=True)]
    return {
        "page_first_sound_ms": round(1000 * statistics.median(page_s)),
        "command_first_audio_ms": round(1000 * statistics.median(line_s)),
        "page_more_ms": round(statistics.median(more_ms)),
        "page_more_ms_max": round(max(more_ms)),
        "first_click_ms": round(1000 * first_click_s),
        "rounds": rounds,
    }


if __name__ == "__main__":
    given = command_line(__doc__, "page", serves=True, rounds=(15, "pairs of page and command")).parse_args()
    stop_on_sigterm()
    with serving(given.model_repository) as address:
        append_result(given.out, "page", asyncio.run(measure(address, given.rounds)))
