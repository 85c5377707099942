"""Between JSON and typed records, by one library: what comes from outside is a record, or refused in one sentence."""

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
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # of a TypedDict, and of a dataclass


class JsonRecord(Generic[T]):
    """One kind of record: a dataclass, or a TypedDict of what may be given.

    A type that says `Field(description=…)` is refused in these words; else in pydantic's.
    """

    def __init__(self, kind: type[T] | Any) -> None:
        self._kind = kind
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

    def write(self, record: T) -> bytes:
        """The record as JSON; nothing is checked."""
        return self._adapter.dump_json(record)

    def read(self, field: str, text: bytes) -> T:
        """The record in JSON `text`; InvalidRequest names the part of `field` that is wrong."""
        try:
            return self._adapter.validate_json(text, strict=True, extra="forbid")
        except ValidationError as error:
            raise self._refusal(field, error.errors(include_url=False)[0]) from None

    def _refusal(self, field: str, first: ErrorDetails) -> InvalidRequest:
        raised = first.get("ctx", {}).get("error")
        if first["type"] == "json_invalid":
            return InvalidRequest(field, "valid JSON", f"an error: {raised}")
        if isinstance(raised, InvalidRequest):  # a record's own, of how its fields go together
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
    """A type without what it says of itself."""
    return _bare(get_args(kind)[0]) if get_origin(kind) in (Annotated, NotRequired) else kind


def _parts(kind: Any) -> Mapping[Any, Any]:
    """The types of the fields of a kind of record, by name."""
    bare = _bare(kind)
    for each in (bare, *get_args(bare)):
        if is_dataclass(each):
            hints = get_type_hints(each, include_extras=True)
            return {field.name: hints[field.name] for field in fields(each)}
        if is_typeddict(each):
            return get_type_hints(each, include_extras=True)
    return {}


def _element(kind: Any) -> Any:
    """The type of the elements of a list."""
    bare = _bare(kind)
    return get_args(bare)[0] if get_origin(bare) in (list, tuple) else None


def _description(kind: Any) -> str | None:
    """What `kind` says of itself."""
    if get_origin(kind) in (NotRequired, Union, UnionType):
        return next(filter(None, map(_description, get_args(kind))), None)
    for mark in getattr(kind, "__metadata__", ()):
        if isinstance(mark, FieldInfo) and mark.description:
            return mark.description
    return None
