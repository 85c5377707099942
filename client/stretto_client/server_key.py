"""The key of a server on this host. Its launcher leaves it in a folder that the same user alone may enter."""

import ipaddress
import os
from pathlib import Path

DIRECTORY = Path("/dev/shm")  # where what is shared lies, so that whoever can share memory can find the key
HEADER = "triton-grpc-protocol-stretto-key"


def key_headers(server: str, directory: Path = DIRECTORY) -> dict[str, str]:
    """The header that opens the shared-memory API of the server at `server` (host:port); none where no key is found.

    Only a server at a loopback address is sent one: elsewhere somebody else may listen on the same port.
    """
    host, _, port = server.rpartition(":")
    if not is_loopback(host.strip("[]")) or not port.isdigit():
        return {}
    found = {path.stat().st_mtime_ns: path for path in directory.glob(f"stretto_launch_*.run/key-{port}") if ours(path)}
    return {HEADER: found[max(found)].read_text()} if found else {}


def ours(path: Path) -> bool:
    """Whether this user has written the file, and nobody else could."""
    state, folder = path.lstat(), path.parent.lstat()
    return state.st_uid == folder.st_uid == os.getuid() and not (state.st_mode | folder.st_mode) & 0o077


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this one."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
