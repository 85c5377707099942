"""Request fields that are not honoured, and the response header that lists them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

from stretto_gateway.api_error import ApiError, refused
from stretto_gateway.field_path import MAX_NAME_CHARS

HEADER = "stretto-ignored"
MAX_NAMES, MAX_SHOWN_CHARS = 16, 64  # limits for the header, because the caller chooses the names
UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")  # other characters could end the header or an entry of its list
UNKNOWN = "Extra inputs are not permitted"  # pydantic's message, also used with `--strict`


class Body(BaseModel):
    """Base class of request bodies: unknown fields are dropped, and the names of the first few are kept."""

    model_config = ConfigDict(extra="ignore")
    _unknown: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def drop_unknown(cls, record: Any, validate: ModelWrapValidatorHandler["Body"]) -> "Body":
        """Return the validated body, which keeps the names of the first unknown fields of `record`."""
        if not isinstance(record, Mapping):
            return validate(record)
        known = {field.alias or name for name, field in cls.model_fields.items()}
        body = validate({name: value for name, value in record.items() if name in known})
        body._unknown = first(name[:MAX_NAME_CHARS] for name in record if name not in known)
        return body


def first(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first names, one more than the header shows."""
    return tuple(name for name, _ in zip(names, range(MAX_NAMES + 1), strict=False))


def unknown_fields(body: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the paths of the unknown fields that were dropped from `body` and the bodies inside it."""
    if isinstance(body, Body):
        yield from (path + name for name in body._unknown)
    for name, value in body.__dict__.items():
        if isinstance(value, BaseModel):
            yield from unknown_fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, BaseModel):
                    yield from unknown_fields(each, f"{path}{name}.{index}.")


def refuse_unknown(body: BaseModel, path: str = "") -> None:
    """Raise ApiError for the first unknown field of `body`, which is part of the request at `path`."""
    for name in unknown_fields(body, path and f"{path}."):
        param = name.encode(errors="backslashreplace").decode()[:MAX_NAME_CHARS]
        raise ApiError(400, f"{param}: {UNKNOWN}", param, "invalid_value")


class Ignored:
    """Names of the fields of one request that are not honoured; with `--strict` such a field is an error instead."""

    def __init__(self, body: BaseModel, is_strict: bool):
        """Collect the unknown fields of `body`; raise ApiError for the first one if `is_strict`."""
        if is_strict:
            refuse_unknown(body)
        self._is_strict = is_strict
        self._names = list(first(unknown_fields(body)))

    def add(self, name: str, expected: str, got: object) -> None:
        """Record that `name` is not honoured; raise ApiError instead if the gateway is strict.

        Args:
            name: The field, under the caller's name.
            expected: Value that would be honoured, for the error message.
            got: The caller's value.
        """
        if self._is_strict:
            raise refused(name, expected, got)
        self.note(name)

    def note(self, name: str) -> None:
        """Record that `name` is not honoured, although a strict gateway accepts it as well."""
        if name not in self._names and len(self._names) <= MAX_NAMES:
            self._names.append(name)

    @property
    def names(self) -> list[str]:
        """Recorded names in safe characters, limited in number and length; `...` replaces further ones."""
        shown = [UNSAFE.sub("?", name[:MAX_SHOWN_CHARS]) for name in self._names[:MAX_NAMES]]
        return shown + ["..."] * (len(self._names) > MAX_NAMES)

    @property
    def headers(self) -> dict[str, str]:
        """Response header with the names; empty if all fields were honoured."""
        return {HEADER: ", ".join(self.names)} if self._names else {}
