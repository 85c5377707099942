"""Records exchanged by the processes of one server: MessagePack, validated against the types of dataclasses."""

import re
from typing import Any, Generic, TypeVar

import msgspec

from stretto.errors import InvalidRequest, shown
from stretto_client.schema import Expected

T = TypeVar("T")
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)  # errors of msgspec for data that it cannot decode
AT = " - at `"  # separates message and path in msgspec's errors
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")  # of such a path
MAX_MESSAGE = 200  # maximum number of characters quoted from msgspec's message, which may contain a value


class PackedRecord(Generic[T]):
    """MessagePack reader and writer for one dataclass; limits of its fields are `msgspec.Meta` annotations."""

    def __init__(self, kind: type[T]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)

    def write(self, record: T) -> bytes:
        """Return the record as MessagePack, without validation."""
        return self._encoder.encode(record)

    def read(self, field: str, data: bytes) -> T:
        """Return the record in MessagePack `data`.

        Args:
            field: Name of the input in error messages.
            data: Output of `write`.

        Raises:
            InvalidRequest: `data` is not MessagePack, a value is missing, has another type or is outside its limits, or
                a key is unknown. The message contains the path of the value.
        """
        try:
            record = self._decoder.decode(data)
            # msgspec ignores unknown keys of dataclasses. What `write` returns has none.
            if self._encoder.encode(record) != data:
                _check_keys(field, msgspec.msgpack.decode(data), msgspec.to_builtins(record))
        except InvalidRequest:
            raise
        except UNREADABLE as error:
            if isinstance(error.__cause__, InvalidRequest):  # raised by the record's own check of related fields
                raise error.__cause__ from None
            raise _refusal(field, str(error), data) from None
        return record


def limits_of(option: Any) -> msgspec.Meta:
    """Return the limits in the type of an option, such as `SampleRate`, as msgspec's annotation."""
    (expected,) = (each for each in option.__metadata__ if isinstance(each, Expected))
    if expected.pattern is None:
        return msgspec.Meta(ge=expected.ge, le=expected.le)
    return msgspec.Meta(pattern=expected.pattern.removesuffix("$") + r"\Z")  # "$" permits a newline at the end


def _check_keys(path: str, given: Any, known: Any) -> None:
    """Raise InvalidRequest if a dict in the raw data `given` has a key that is missing in the decoded data `known`."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key not in known:
                expected = f"one of {', '.join(sorted(known))}"
                raise InvalidRequest(f"{path}.{shown(key)[1:-1]}", expected, "an unknown key")
            _check_keys(f"{path}.{key}", value, known[key])
    elif isinstance(given, list):
        for index, (value, read) in enumerate(zip(given, known, strict=True)):
            _check_keys(f"{path}[{index}]", value, read)


def _refusal(field: str, text: str, data: bytes) -> InvalidRequest:
    """Return the InvalidRequest for msgspec's error message `text`."""
    message, _, place = text.partition(AT)
    path = place.rpartition("$")[2].rstrip("`")
    if message.startswith("Expected "):
        expected, _, got = message.removeprefix("Expected ").replace("`", "").partition(", got ")
        return InvalidRequest(field + path, expected, _value_at(path, data) or got or "another value")
    return InvalidRequest(field + path, "a valid value", f"an error: {shown(message, MAX_MESSAGE)}")


def _value_at(path: str, data: bytes) -> str | None:
    """Return the value at `path` in `data` for an error message; None if the data after it cannot be decoded."""
    try:
        value = msgspec.msgpack.decode(data)
    except UNREADABLE:
        return None
    for key, index in STEP.findall(path):
        value = value[key or int(index)]
    return shown(value)
