"""How soon the page is heard, beside the command line: the same text and seed, in turns.

    python -m benchmarks.page --rounds 15

It starts a server of its own, a gateway before it, and a Chromium, all on this host. The page's time is its own, from
the click to the first sample at the loudspeaker, with the delay of the device as the browser knows it. The command
line's is that of its summary, from the request to the first audio in its hands.
"""

import argparse
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
from benchmarks.results_file import append_result
from benchmarks.temporary_server import command_line, serving, stop_on_sigterm

TEXT = "It is twenty past nine and the garden door is open."
IS_OPEN = "document.querySelector('#speak').checkVisibility()"


async def by_page(tab: Tab, seed: int) -> float:
    """Seconds to the first sound in the page, which is ready."""
    await tab.write("#seed", str(seed))
    await tab.click("#speak-button")
    await tab.wait(f"document.querySelector('#used-seed').textContent === '{seed}'")
    await tab.reads("#speak-status", "Finished")
    return float((await tab.text("#first-sound")).removesuffix(" s"))


def by_command_line(server: str, seed: int, folder: Path) -> float:
    """Seconds to the first audio by the command, without those in which it starts."""
    command = [sys.executable, "-m", "stretto_client", "speak", TEXT, "--json", "--play", "off"]
    flags = ["--server", server, "--seed", str(seed), "--out", str(folder / "speech.wav")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["ttfa_s"])


async def measure(server: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record: medians of both, and of the pairs' differences; the first click of a tab by itself."""
    with tempfile.TemporaryDirectory() as folder, gateway(server) as (url, _), chromium(Path(folder)) as address:
        async with driving(address) as browser:
            tab = await browser.tab()
            await tab.open(url, IS_OPEN)
            await tab.write("#text", TEXT)
            by_command_line(server, 1, Path(folder))  # so that the first click is the page's first alone
            first_click_s = await by_page(tab, 1)
            page_s, line_s = [], []
            for seed in range(2, 2 + arguments.rounds):
                page_s.append(await by_page(tab, seed))
                line_s.append(await asyncio.to_thread(by_command_line, server, seed, Path(folder)))
    more_ms = [1000 * (page - line) for page, line in zip(page_s, line_s, strict=True)]
    return {
        "page_first_sound_ms": round(1000 * statistics.median(page_s)),
        "command_first_audio_ms": round(1000 * statistics.median(line_s)),
        "page_more_ms": round(statistics.median(more_ms)),
        "page_more_ms_max": round(max(more_ms)),
        "first_click_ms": round(1000 * first_click_s),
        "rounds": arguments.rounds,
    }


def main(words: list[str] | None = None) -> None:
    """A line."""
    flags = command_line(__doc__, "page")
    flags.add_argument("--rounds", type=int, default=15)
    arguments = flags.parse_args(words)
    stop_on_sigterm()
    with serving(arguments.model_repository) as server:
        append_result(arguments.out, "page", asyncio.run(measure(server, arguments)))


if __name__ == "__main__":
    main()
