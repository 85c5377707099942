"""Announcement of the port in the local network (mDNS), so that Home Assistant finds it."""

import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from stretto_contract.listening import ALL_OF

LOG = logging.getLogger("stretto_gateway")
SERVICE = "_wyoming._tcp.local."
HOST_CHARS = 40  # an announced name has at most 63
Close = Callable[[], Awaitable[None]]


async def announce(address: str, port: int) -> Close | None:
    """Announce a port of an IP address; `0.0.0.0` and `::` stand for all of this host.

    Return the function that ends the announcement. If it fails, log the reason and return None.
    """
    try:
        from zeroconf import Error, InterfaceChoice, IPVersion, get_all_addresses
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
    except ImportError:
        LOG.warning("Wyoming is not announced: expected the package zeroconf (pip install 'stretto[wyoming]')")
        return None
    is_everywhere = address in ALL_OF
    addresses = [one for one in get_all_addresses() if not ip_address(one).is_loopback] if is_everywhere else [address]
    version = IPVersion.V6Only if ":" in address and not is_everywhere else IPVersion.V4Only
    host = socket.gethostname().partition(".")[0][:HOST_CHARS]
    name = f"stretto-{host}-{port}.{SERVICE}"
    service = AsyncServiceInfo(SERVICE, name, port, parsed_addresses=addresses)
    try:
        announcer = AsyncZeroconf(InterfaceChoice.All if is_everywhere else [address], ip_version=version)
        await announcer.async_register_service(service, allow_name_change=True)
    except (OSError, Error) as error:
        LOG.warning("Wyoming is not announced: %s", error)
        return None
    LOG.info("Wyoming is announced as %s", service.name)
    return announcer.async_close
