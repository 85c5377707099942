"""JSON records, bounded parsing of JSON from untrusted requests, and MessagePack for messages between processes."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Generic, NoReturn, NotRequired, Self, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import get_type_hints, is_typeddict

from stretto.errors import InvalidRequest, shown
from stretto_contract.schema import Expected

T = TypeVar("T")
MAX_LISTED = 12  # maximum number of keys in a message
MAX_KEY_CHARS = 64  # characters of an unknown key that are compared with known ones
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's error types for TypedDicts and dataclasses
OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than_equal")  # pydantic's error types for numbers


def string(field: str, value: str | bytes | None) -> str | None:
    """Decode a string input; raise InvalidRequest if it is not UTF-8."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, "UTF-8", f"a byte {value[error.start]:#04x} at {error.start}") from error


class JsonRecord(Generic[T]):
    """JSON reader and writer for one type, which is a dataclass or a TypedDict.

    Error messages contain the description of the expected value from the type's `Field(description=…)` or `Expected`
    annotation, or pydantic's message if there is none.
    """

    def __init__(self, hint: type[T] | Any) -> None:
        self._hint = hint
        self._adapter: TypeAdapter[T] = TypeAdapter(hint)

    def write(self, record: T) -> bytes:
        """Return the record as JSON, without validation."""
        return self._adapter.dump_json(record)

    def read(self, field: str, text: bytes) -> T:
        """Parse JSON `text`; raise InvalidRequest with the path of the invalid value, which begins with `field`."""
        try:
            return self._adapter.validate_json(text, strict=True, extra="forbid")
        except ValidationError as error:
            raise self._refusal(field, error.errors(include_url=False)[0]) from None

    def check(self, field: str, value: Any) -> T:
        """Validate the result of `read_json`; raise InvalidRequest as `read` does."""
        try:
            return self._adapter.validate_python(value, strict=True, extra="forbid")
        except ValidationError as error:
            raise self._refusal(field, error.errors(include_url=False)[0]) from None

    def _refusal(self, field: str, first: ErrorDetails) -> InvalidRequest:
        raised = first.get("ctx", {}).get("error")
        if first["type"] == "json_invalid":
            return InvalidRequest(field, "valid JSON", f"an error: {raised}")
        if isinstance(raised, InvalidRequest):  # raised by the record's own check of related fields
            return raised
        if isinstance(raised, ValueError):  # also raised by a check of the record
            return InvalidRequest(field, "a valid value", f"an error: {raised}")
        path = field
        hint = self._hint
        for key in first["loc"]:
            fields_of_record = _parts(hint)
            element = _element(hint)
            if first["type"] in UNKNOWN and element is None and key not in fields_of_record:
                named = f"{path}.{shown(key)[1:-1]}"
                return InvalidRequest(named, f"one of {_listed(fields_of_record, str(key))}", "an unknown key")
            path += f"[{key}]" if isinstance(key, int) else f".{key}"
            hint = fields_of_record.get(key, element)
        expected = described(hint, of_kind=first["type"] not in OUT_OF_RANGE)
        return InvalidRequest(path, expected or first["msg"].removeprefix("Input should be "), _got(first))


def _listed(names_known: Iterable[str], key: str) -> str:
    """Return known keys for an error message; if there are many, those most similar to `key`.

    The list is short because Triton truncates long errors.
    """
    names = sorted(names_known)
    if len(names) <= MAX_LISTED:
        return ", ".join(names)
    similar = get_close_matches(key[:MAX_KEY_CHARS], names, MAX_LISTED, cutoff=0.0)
    return f"{', '.join(similar)} and {len(names) - len(similar)} others"


def _got(error: ErrorDetails) -> str:
    if error["type"] in ("too_short", "too_long"):
        return str(error["ctx"]["actual_length"])
    return "none" if error["type"] == "missing" else shown(error["input"])


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) in (Annotated, NotRequired) else hint


def _parts(hint: Any) -> Mapping[Any, Any]:
    """Return the type of each field of a record, by name."""
    bare = _bare(hint)
    for member in (bare, *get_args(bare)):
        if is_dataclass(member):
            hints = get_type_hints(member, include_extras=True)
            return {field.name: hints[field.name] for field in fields(member)}
        if is_typeddict(member):
            return get_type_hints(member, include_extras=True)
    return {}


def _element(hint: Any) -> Any:
    """Return the type of a list's elements, or of a mapping's values."""
    bare = _bare(hint)
    if get_origin(bare) is Mapping:
        return get_args(bare)[1]
    return get_args(bare)[0] if get_origin(bare) in (list, tuple) else None


def described(hint: Any, of_kind: bool = False) -> str | None:
    """Return the expected value's description in the annotations of a type or a nested type, or None.

    For a number, `of_kind` leaves out the range.
    """
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, FieldInfo | Expected) and mark.description:
            return (of_kind and isinstance(mark, Expected) and mark.kind) or mark.description
    inner = get_args(hint) if get_origin(hint) in (Annotated, NotRequired, Union, UnionType) else ()
    return next(filter(None, (described(member, of_kind) for member in inner)), None)


MAX_BYTES = 16 * 1024
MAX_DEPTH = 8
MAX_PARTS = 8192  # strings and brackets; 64 turns of 32 code lists each have 4674. Numbers are not counted
# A string, closed or not, or a bracket; nothing else affects the nesting depth. Possessive quantifiers (`+` after a
# count) prevent backtracking, so that escapes need no memory.
STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


def read_json(field: str, text: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON from a request; raise InvalidRequest if it exceeds a limit or is malformed.

    Repeated keys, NaN and infinity are malformed, too.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise InvalidRequest(field, f"at most {max_bytes} bytes of JSON", f"{size} bytes")
    depth, num_parts = measured(text)
    if depth > MAX_DEPTH:
        raise InvalidRequest(field, f"JSON nested at most {MAX_DEPTH} deep", f"{depth} levels or more")
    if num_parts > MAX_PARTS:
        raise InvalidRequest(field, f"at most {MAX_PARTS} strings and brackets of JSON", "more")

    def refuse_constant(constant: str) -> NoReturn:
        raise InvalidRequest(field, "finite numbers", constant)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise InvalidRequest(field, "each key once", "a repeated key")
        return record

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except InvalidRequest:
        raise
    except ValueError as error:
        raise InvalidRequest(field, "valid JSON", f"an error: {error}") from error


def measured(text: str) -> tuple[int, int]:
    """Return the maximum nesting depth of JSON, and the number of its brackets and strings.

    Brackets in strings do not count. For malformed text, the numbers are upper bounds. Counting stops once a limit is
    exceeded.
    """
    depth = deepest = num_parts = 0
    for match in STRING_OR_BRACKET.finditer(text):
        num_parts += 1
        character = match.group()
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
        if deepest > MAX_DEPTH or num_parts > MAX_PARTS:
            break
    return deepest, num_parts


UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)  # raised by msgspec for data that it cannot decode
AT = " - at `"  # separates message and path in msgspec's errors
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")  # one step of such a path
MAX_MESSAGE = 200  # maximum number of characters quoted from msgspec's message, which may contain a value


class PackedRecord(Generic[T]):
    """MessagePack reader and writer for one dataclass, whose field limits are `msgspec.Meta` annotations."""

    def __init__(self, record_type: type[T]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(record_type)

    def write(self, record: T) -> bytes:
        """Return the record as MessagePack, without validation."""
        return self._encoder.encode(record)

    def read(self, field: str, data: bytes) -> T:
        """Parse MessagePack; raise InvalidRequest with the path of an invalid value or unknown key."""
        try:
            record = self._decoder.decode(data)
            # msgspec ignores unknown keys of dataclasses. The output of `write` has none.
            if self._encoder.encode(record) != data:
                _check_keys(field, msgspec.msgpack.decode(data), msgspec.to_builtins(record))
        except InvalidRequest:
            raise
        except UNREADABLE as error:
            raise _refusal(field, str(error), data) from None
        return record


_packed: Callable[[Any], PackedRecord[Any]] = cache(PackedRecord)


class Packed:
    """Base class of dataclasses that are sent as MessagePack."""

    __slots__ = ()

    def to_bytes(self) -> bytes:
        """Return this record as MessagePack."""
        return _packed(type(self)).write(self)

    @classmethod
    def from_bytes(cls, field: str, data: bytes) -> Self:
        """Parse the result of `to_bytes`; see `PackedRecord.read`."""
        record: Self = _packed(cls).read(field, data)
        return record


def limits_of(option: Any) -> msgspec.Meta:
    """Convert the limits in an option type, such as `SampleRate`, to a msgspec annotation."""
    (expected,) = (mark for mark in option.__metadata__ if isinstance(mark, Expected))
    if expected.pattern is None:
        return msgspec.Meta(ge=expected.ge, le=expected.le)
    return msgspec.Meta(pattern=expected.pattern.removesuffix("$") + r"\Z")  # "$" permits a newline at the end


def _check_keys(path: str, raw: Any, decoded: Any) -> None:
    """Raise InvalidRequest if a dict in the raw data has a key that is not in the decoded data."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            if key not in decoded:
                expected = f"one of {', '.join(sorted(decoded))}"
                raise InvalidRequest(f"{path}.{shown(key)[1:-1]}", expected, "an unknown key")
            _check_keys(f"{path}.{key}", value, decoded[key])
    elif isinstance(raw, list):
        for index, (value, read) in enumerate(zip(raw, decoded, strict=True)):
            _check_keys(f"{path}[{index}]", value, read)


def _refusal(field: str, text: str, data: bytes) -> InvalidRequest:
    """Convert an error message of msgspec."""
    message, _, location = text.partition(AT)
    path = location.rpartition("$")[2].rstrip("`")
    if message.startswith("Expected "):
        expected, _, got = message.removeprefix("Expected ").replace("`", "").partition(", got ")
        return InvalidRequest(field + path, expected, _value_at(path, data) or got or "another value")
    return InvalidRequest(field + path, "a valid value", f"an error: {shown(message, MAX_MESSAGE)}")


def _value_at(path: str, data: bytes) -> str | None:
    """Return the value at `path` in `data` for an error message, or None if `data` cannot be decoded."""
    try:
        value = msgspec.msgpack.decode(data)
    except UNREADABLE:
        return None
    for key, index in STEP.findall(path):
        value = value[key or int(index)]
    return shown(value)
