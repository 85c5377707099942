"""Address of a client's output ring (see `triton_io/ring.py`)."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

FIELD = "options.output.ring"
NAME = "stretto_ring_[0-9a-f]{16}"  # clients may name no other shared memory
HANDLE_BYTES = 64


def _check_handle(text: str) -> str:
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError("no base64") from error
    if size != HANDLE_BYTES:
        raise ValueError(f"{size} bytes")
    return text


RingName = Annotated[str, Field(pattern=f"^{NAME}$", description=f"a name like {NAME}")]
CudaHandle = Annotated[str, AfterValidator(_check_handle), Field(description=f"{HANDLE_BYTES} bytes in base64")]
Device = Annotated[int, Field(ge=0, lt=1 << 31, description="the number of a GPU")]


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Name of the header's shared memory and, for slots on a GPU, IPC handle and device number."""

    name: RingName
    cuda_handle: CudaHandle | None = None
    device: Device = 0
