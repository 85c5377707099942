"""Announcement in the local network, read by the browser of the package zeroconf."""

import asyncio

from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from stretto_wyoming.discovery import SERVICE, announce
from tests.patience import PATIENCE_S


async def test_port_is_announced_until_it_is_closed() -> None:
    changes = asyncio.Queue[tuple[str, str]]()

    def note(zeroconf: object, service_type: str, name: str, state_change: object) -> None:
        changes.put_nowait((name, str(state_change)))

    listening = AsyncZeroconf(["127.0.0.1"], ip_version=IPVersion.V4Only)
    browser = AsyncServiceBrowser(listening.zeroconf, SERVICE, handlers=[note])
    try:
        end = await announce("127.0.0.1", 10_345)
        assert end is not None
        async with asyncio.timeout(PATIENCE_S):
            name, change = await changes.get()
            service = AsyncServiceInfo(SERVICE, name)
            assert await service.async_request(listening.zeroconf, 1000 * PATIENCE_S)
            await end()
            while "Removed" not in change:
                _, change = await changes.get()
    finally:
        await browser.async_cancel()
        await listening.async_close()
    assert name.startswith("stretto-")
    assert (service.port, service.parsed_addresses()) == (10_345, ["127.0.0.1"])
