"""Calls of the gateway's page in Chromium."""

import numpy as np

from stretto_webrtc.state import WebRtcOptions
from tests.browser import Browser
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE
from tests.gateway.realtime.test_duplex import DUPLEX, Partner
from tests.gateway.test_page_in_browser import READY, address, browser, pytestmark
from tests.patience import until_async

__all__ = ["address", "browser", "pytestmark"]


async def test_page_calls_over_webrtc_where_the_gateway_has_it(start: Start, browser: Browser) -> None:
    """The duplex model receives the beeps of the fake microphone of Chromium, and its speech is played."""
    partner = Partner()
    running = await start(partner, DUPLEX, routes=(WebRtcOptions(("127.0.0.1",)),))
    tab = await browser.tab()
    await tab.open(running.url, READY)
    await tab.click("#call-button")
    await tab.reads("#converse-status", "Talking.")
    await tab.reads("#turns", "so")
    await until_async(lambda: np.abs(np.array(partner.heard[-2 * RATE :])).max() > 0.05)
    assert not [url for url in tab.urls if url.startswith("ws")]
    await tab.press("Escape")
    await tab.reads("#converse-status", "The call is over.")
    await running.until(gateway_sessions=0)
    assert tab.complaints == []
