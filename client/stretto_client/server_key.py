"""Key of a server on this host, which its launcher stores in a folder that only the same user can enter."""

import ipaddress
import os
from pathlib import Path

DIRECTORY = Path("/dev/shm")  # the folder of shared memory, so that every client that can share memory finds the key
HEADER = "triton-grpc-protocol-stretto-key"


def key_headers(server: str, directory: Path = DIRECTORY) -> dict[str, str]:
    """Return the header that grants access to the shared-memory API of `server` (host:port); empty if no key is found.

    The key is only sent to loopback addresses, because another program may listen on the same port of another host.
    """
    host, _, port = server.rpartition(":")
    if not is_loopback(host.strip("[]")) or not port.isdigit():
        return {}
    found = {path.stat().st_mtime_ns: path for path in directory.glob(f"stretto_launch_*.run/key-{port}") if ours(path)}
    return {HEADER: found[max(found)].read_text()} if found else {}


def ours(path: Path) -> bool:
    """Return True if this user has written the file, and no other user could have."""
    state, folder = path.lstat(), path.parent.lstat()
    return state.st_uid == folder.st_uid == os.getuid() and not (state.st_mode | folder.st_mode) & 0o077


def is_loopback(host: str) -> bool:
    """Return True if `host` is this machine's loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
