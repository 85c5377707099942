"""Conversion between JSON and typed records, with one-sentence errors for invalid input."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Generic, NotRequired, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import get_type_hints, is_typeddict

from stretto.errors import InvalidRequest, shown

T = TypeVar("T")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's error types for TypedDicts and dataclasses


class JsonRecord(Generic[T]):
    """Reader and writer of one kind of record: a dataclass, or a TypedDict of optional fields.

    A type with `Field(description=…)` is described by that text in errors, other types by pydantic's message.
    """

    def __init__(self, kind: type[T] | Any) -> None:
        self._kind = kind
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

    def write(self, record: T) -> bytes:
        """Return the record as JSON, without validation."""
        return self._adapter.dump_json(record)

    def read(self, field: str, text: bytes) -> T:
        """Return the record in JSON `text`; raise InvalidRequest naming the invalid part of `field`."""
        try:
            return self._adapter.validate_json(text, strict=True, extra="forbid")
        except ValidationError as error:
            raise self._refusal(field, error.errors(include_url=False)[0]) from None

    def _refusal(self, field: str, first: ErrorDetails) -> InvalidRequest:
        raised = first.get("ctx", {}).get("error")
        if first["type"] == "json_invalid":
            return InvalidRequest(field, "valid JSON", f"an error: {raised}")
        if isinstance(raised, InvalidRequest):  # raised by the record itself for inconsistent fields
            return raised
        path, kind = field, self._kind
        for part in first["loc"]:
            known, element = _parts(kind), _element(kind)
            if first["type"] in UNKNOWN and element is None and part not in known:
                named = f"{path}.{shown(part)[1:-1]}"
                return InvalidRequest(named, f"one of {', '.join(sorted(known))}", "an unknown key")
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
            kind = known.get(part, element)
        return InvalidRequest(path, _description(kind) or first["msg"].removeprefix("Input should be "), _got(first))


def _got(error: ErrorDetails) -> str:
    if error["type"] in ("too_short", "too_long"):
        return str(error["ctx"]["actual_length"])
    return "nothing" if error["type"] == "missing" else shown(error["input"])


def _bare(kind: Any) -> Any:
    """Return a type without its annotations."""
    return _bare(get_args(kind)[0]) if get_origin(kind) in (Annotated, NotRequired) else kind


def _parts(kind: Any) -> Mapping[Any, Any]:
    """Return the types of a record's fields by name."""
    bare = _bare(kind)
    for each in (bare, *get_args(bare)):
        if is_dataclass(each):
            hints = get_type_hints(each, include_extras=True)
            return {field.name: hints[field.name] for field in fields(each)}
        if is_typeddict(each):
            return get_type_hints(each, include_extras=True)
    return {}


def _element(kind: Any) -> Any:
    """Return the type of a list's elements."""
    bare = _bare(kind)
    return get_args(bare)[0] if get_origin(bare) in (list, tuple) else None


def _description(kind: Any) -> str | None:
    """Return the description in `kind`'s annotations."""
    if get_origin(kind) in (NotRequired, Union, UnionType):
        return next(filter(None, map(_description, get_args(kind))), None)
    for mark in getattr(kind, "__metadata__", ()):
        if isinstance(mark, FieldInfo) and mark.description:
            return mark.description
    return None
