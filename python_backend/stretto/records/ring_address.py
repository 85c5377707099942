"""Where the ring lies that a client has made for its samples (see `triton_io/ring.py`)."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

from stretto.errors import InvalidRequest

FIELD = "options.output.ring"
NAME = re.compile(r"stretto_ring_[0-9a-f]{16}")  # nothing else in shared memory is for clients to name


@dataclass(frozen=True, slots=True)
class RingAddress:
    """What a client says of its ring: the name of the header's memory; for slots on a GPU its handle and number."""

    name: str
    cuda_handle: str | None = None
    device: int = 0

    @classmethod
    def from_record(cls, record: Any) -> "RingAddress":
        """From `options.output.ring`; InvalidRequest names what is wrong."""
        if not isinstance(record, dict) or not record.keys() <= {"name", "cuda_handle", "device"}:
            raise InvalidRequest(FIELD, "an object of name, cuda_handle and device", repr(record))
        name, handle, device = record.get("name"), record.get("cuda_handle"), record.get("device", 0)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidRequest(f"{FIELD}.name", f"a name like {NAME.pattern}", repr(name))
        if handle is not None and not _is_handle(handle):
            raise InvalidRequest(f"{FIELD}.cuda_handle", "64 bytes in base64", repr(handle))
        if isinstance(device, bool) or not isinstance(device, int) or device < 0:
            raise InvalidRequest(f"{FIELD}.device", "the number of a GPU", repr(device))
        return cls(name, handle, device)


def _is_handle(text: Any) -> bool:
    try:
        return isinstance(text, str) and len(base64.b64decode(text, validate=True)) == 64
    except binascii.Error:
        return False
