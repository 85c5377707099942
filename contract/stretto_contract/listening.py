"""Addresses and sockets on which the proxy and the gateway listen."""

import argparse
import ipaddress
import os
import socket

LOOPBACK = "127.0.0.1"
ALL_IPV4 = "0.0.0.0"
ALL = "::"
ALL_OF = {ALL: "all IPv6 and IPv4 addresses", ALL_IPV4: "all IPv4 addresses"}


def listening_address(text: str) -> str:
    """Parse an IP address to listen on, for argparse; it may be in brackets, and `localhost` is 127.0.0.1."""
    if text == "localhost":
        return LOOPBACK
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        expected = f"an IP address of this host, {ALL_IPV4} for {ALL_OF[ALL_IPV4]} or {ALL} for {ALL_OF[ALL]}"
        raise argparse.ArgumentTypeError(f"expected {expected}, without a port, got {text!r}") from None


def listen(address: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens on an IP address; on `::`, it accepts IPv4 connections, too.

    If the port or the address is not available, raise OSError, whose `strerror` is the reason.
    """
    is_dual = address == ALL and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=backlog, dualstack_ipv6=is_dual)
    except OSError as error:
        number = error.errno or 0
        raise OSError(number, f"cannot listen at {place(address, port)}: {os.strerror(number)}") from None


def place(address: str, port: int) -> str:
    """Return an address and a port as in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def described(address: str) -> str:
    """Return an address and its meaning, for the ports of a server with gRPC."""
    if address not in ALL_OF:
        return address
    also = "; gRPC: also IPv6" if address == ALL_IPV4 else ""  # gRPC makes no difference between the two
    return f"{address} ({ALL_OF[address]}{also})"
