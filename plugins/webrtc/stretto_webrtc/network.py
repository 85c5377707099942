"""Addresses and UDP ports at which calls are received."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from random import randrange
from typing import Self

ADDRESS = "--webrtc-address"
ANY_PORT = range(1)  # port 0: the system chooses


@dataclass(frozen=True, slots=True)
class UdpAddress:
    """Address at which calls are received.

    Attributes:
        announced: IP address in the answers to callers.
        bound: IP address of this host to which the sockets are bound.
    """

    announced: str
    bound: str

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `ADDRESS`, or `ANNOUNCED=BOUND` if a NAT translates between the two.

        Raises:
            ValueError: The text is neither, or callers cannot send to the announced address.
        """
        announced, _, bound = text.partition("=")
        try:
            one = ip_address(announced)
            other = ip_address(bound or announced)
        except ValueError:
            raise ValueError(f"{ADDRESS}: expected an IP address, or ANNOUNCED=BOUND, got {text!r}") from None
        if one.is_unspecified or one.is_multicast or one.version != other.version:
            expected = "an address to which callers can send, and two of the same version"
            raise ValueError(f"{ADDRESS}: expected {expected}, got {text!r}")
        return cls(str(one), str(other))


@dataclass(frozen=True, slots=True)
class CallNetwork:
    """Addresses (none: no calls) and UDP ports for calls. A call uses one port at each address."""

    addresses: tuple[UdpAddress, ...] = ()
    ports: range = ANY_PORT

    @classmethod
    def from_texts(cls, addresses: tuple[str, ...], ports: str) -> Self:
        """Parse the settings of a gateway; raise ValueError if one is invalid, or packages for calls are missing.

        Args:
            addresses: Texts that `UdpAddress.from_text` parses.
            ports: `FIRST-LAST`, or empty for any.
        """
        network = cls(tuple(map(UdpAddress.from_text, addresses)), ports_from_text(ports))
        if network.addresses and find_spec("aiortc") is None:
            raise ValueError(f"{ADDRESS}: calls need packages that are not installed: pip install 'stretto[webrtc]'")
        return network

    def shuffled_ports(self) -> Iterator[int]:
        """Yield all ports from a random one on, so that a port is rarely used again soon."""
        first = randrange(len(self.ports))
        yield from (*self.ports[first:], *self.ports[:first])


def ports_from_text(text: str) -> range:
    """Parse `FIRST-LAST`, or an empty text for any ports; raise ValueError for other texts."""
    first, _, last = text.partition("-")
    if not text:
        return ANY_PORT
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first[:6]) <= int(last[:6]) <= 65_535):
        raise ValueError(f"--webrtc-ports: expected a range of UDP ports such as 50000-50999, got {text!r}")
    return range(int(first), int(last) + 1)
