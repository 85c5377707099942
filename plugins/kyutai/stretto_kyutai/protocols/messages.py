"""MessagePack messages of Kyutai's protocols."""

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from stretto_gateway.answers import ApiError, mismatch, shown
from stretto_gateway.socket_session import SessionEnd

MALFORMED = 1007  # close code for a message that cannot be read (RFC 6455, section 7.4.1)
MAX_CONTAINERS = 8  # maximum number of lists and objects in a message
SHOWN = 8  # number of elements of a list that an error message shows


def malformed(error: ApiError) -> SessionEnd:
    """Return the SessionEnd for a session whose client has sent an unreadable message."""
    return SessionEnd(MALFORMED, "a message was malformed", error)


def packed(message_type: str, **fields: Any) -> bytes:
    """Encode a message. As in Kyutai's servers, times are float64 and other floats are float32."""
    is_single = "pcm" in fields or "prs" in fields
    data: bytes = msgpack.packb({"type": message_type} | fields, use_single_float=is_single)
    return data


def packed_error(text: str) -> bytes:
    """Encode an error message."""
    return packed("Error", message=text)


def unpacked(message: bytes) -> dict[str, Any]:
    """Decode the object in a message; raise SessionEnd if the message is malformed."""
    num_containers = 0

    def count(container: Any) -> Any:
        nonlocal num_containers
        num_containers += 1
        if num_containers > MAX_CONTAINERS:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
        return container

    try:
        record = msgpack.unpackb(message, list_hook=count, object_hook=count)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        why = f"expected MessagePack, got an error: {error}"
        raise malformed(ApiError(400, why[:200], code="invalid_event")) from None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        raise malformed(ApiError(400, f"expected an object with a type, got {shown(record)}", code="invalid_event"))
    return record


def field_of(record: dict[str, Any], name: str, expected_type: type, what: str) -> Any:
    """Return a field of a message; raise SessionEnd if its type is another."""
    value = record.get(name)
    if not isinstance(value, expected_type) or isinstance(value, bool):
        raise malformed(mismatch(name, what, shown(value)))
    return value


def samples_in(record: dict[str, Any]) -> NDArray[np.float32]:
    """Return the samples [n] in an audio message; raise SessionEnd if they are not numbers."""
    values = field_of(record, "pcm", list, "a list of samples")
    # Types are checked first: an array of strings would take the length of the longest one for each element.
    if not set(map(type, values)) <= {int, float}:
        raise malformed(mismatch("pcm", "a list of samples", shown(values[:SHOWN])))
    return np.fromiter(values, np.float32, len(values))


def bytes_in(record: dict[str, Any]) -> bytes:
    """Return a message's bytes, which Rust clients write as a list of integers; raise SessionEnd without any."""
    data = record.get("data")
    try:
        if isinstance(data, bytes | list):
            return bytes(data)
    except (ValueError, TypeError):  # not a list of bytes
        pass
    raise malformed(mismatch("data", "bytes", shown(data[:SHOWN] if isinstance(data, list) else data)))
