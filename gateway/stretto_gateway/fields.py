"""Fields of requests: their base class, how they are validated and ignored, and limits on JSON."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from stretto_gateway.answers import ApiError, mismatch, refused, shown
from stretto_gateway.response_headers import ResponseHeader

Model = TypeVar("Model", bound=BaseModel)
MAX_NAME_CHARS = 200  # the caller chooses the names of unknown fields
MAX_CHOSEN = 16  # above the length of any valid list of choices; longer lists are refused without being read


def field_path(error: Mapping[str, Any], record: Any) -> str:
    """Return the dotted path of a validation error in `record`; empty for the whole record.

    If a field has several types, pydantic's location also contains the name of a type, which is omitted here.
    """
    names: list[str] = []
    location = error["loc"]
    for index, step in enumerate(location):
        is_missing = error["type"] == "missing" and index == len(location) - 1
        if isinstance(record, Mapping) and (step in record or is_missing):
            record = record.get(step)
        elif isinstance(record, list) and isinstance(step, int):
            record = record[step]
        else:
            continue
        names.append(str(step))
    return ".".join(names)[:MAX_NAME_CHARS].encode(errors="backslashreplace").decode()


def error_message(error: Mapping[str, Any]) -> str:
    """Return the message of a validation error with the value, without pydantic's prefix for errors of our own."""
    message = str(error["msg"]).removeprefix("Value error, ")
    is_complete = error["type"] == "missing" or ", got " in message
    return message if is_complete else f"{message}, got {shown(error['input'])}"


def validated(model: type[Model], record: Any, path: str = "") -> Model:
    """Return `record` as a `model`; raise ApiError for the first invalid field, with the prefix `path`."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(name for name in (path, field_path(first, record)) if name)
    if first["type"] == "missing":
        raise ApiError(400, f"{param}: missing", param, "missing")
    raise ApiError(400, f"{param}: {error_message(first)}", param, "invalid_value")


IGNORED = "stretto_ignored"  # `ResponseHeader.IGNORED` in events; OpenAI's types of them allow further fields
# limits for the response header, because the caller chooses the names
MAX_NAMES = 16
MAX_SHOWN_CHARS = 64
SHOWN = re.compile(r"%[0-9A-F]{2}|.", re.DOTALL)  # what counts as a character of a name
# Other characters could end the header or an entry of its list.
UNSAFE = re.compile(r"[^A-Za-z0-9_.%\[\]-]|%(?![0-9A-F]{2})")
UNKNOWN = "Extra inputs are not permitted"  # pydantic's message, also used with `--strict`


class FieldRule(NamedTuple):
    """Rule by which the values of a field are read before they are validated.

    Attributes:
        is_required: True if the field may not be missing.
        can_be_null: True if null is a value of the field, not a missing field.
        choices: Named values of the field, keyed by lower case; empty for other fields.
    """

    is_required: bool
    can_be_null: bool
    choices: Mapping[str, str]


@cache
def field_rules(model: type[BaseModel]) -> Mapping[str, FieldRule]:
    """Return the rules of a model's fields, keyed by their names in requests."""
    return {
        field.alias or name: FieldRule(
            field.is_required(), type(None) in get_args(field.annotation), choices_in(field.annotation)
        )
        for name, field in model.model_fields.items()
    }


def choices_in(annotation: Any) -> dict[str, str]:
    """Return the named values that a type lists, also in unions and lists, keyed by lower case."""
    if get_origin(annotation) is Literal:
        return {name.lower(): name for name in get_args(annotation) if isinstance(name, str)}
    return {key: name for inner in get_args(annotation) for key, name in choices_in(inner).items()}


def is_blank(value: object) -> bool:
    """Return True if `value` is text without any visible character."""
    return isinstance(value, str) and not value.strip()


class Body(BaseModel):
    """Base class of request bodies and of the objects in them.

    A null and a blank choice count as missing, because many clients send all fields that they know. Choices have any
    letter case and may be surrounded by blanks. Unknown fields are dropped, and the names of the first few are
    recorded, unless they have no value.
    """

    model_config = ConfigDict(extra="ignore")
    _unknown: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="before")
    @classmethod
    def drop_missing(cls, record: Any) -> Any:
        """Return `record` without the fields that count as missing, and with the names of its choices."""
        if not isinstance(record, Mapping):
            return record
        rules = field_rules(cls)
        kept = dict[Any, Any]()
        for name, raw in record.items():
            rule = rules.get(name)
            value = raw if rule is None else cls.value_of(rule, raw)
            if value is not None or rule is None or rule.can_be_null:
                kept[name] = value
            elif rule.is_required:
                kept[name] = raw  # validation reports it
        return kept

    @classmethod
    def value_of(cls, rule: FieldRule, raw: Any) -> Any:
        """Return the value of a field from a client; None if it counts as missing."""
        if rule.choices and isinstance(raw, list) and len(raw) <= MAX_CHOSEN:
            return [value for item in raw if (value := cls.value_of(rule, item)) is not None]
        if not rule.choices or not isinstance(raw, str):
            return raw
        return None if is_blank(raw) else rule.choices.get(raw.strip().lower(), raw)

    @model_validator(mode="wrap")
    @classmethod
    def drop_unknown(cls, record: Any, validate: ModelWrapValidatorHandler["Body"]) -> "Body":
        """Validate a body, and record in it the names of the first unknown fields of `record`."""
        if not isinstance(record, Mapping):
            return validate(record)
        rules = field_rules(cls)
        body = validate({name: value for name, value in record.items() if name in rules})
        unknown = (name for name, value in record.items() if name not in rules and not cls.has_no_value(value))
        body._unknown = first_names(name[:MAX_NAME_CHARS] for name in unknown)
        return body

    @classmethod
    def has_no_value(cls, value: Any) -> bool:
        """Return True if a value means that the field is absent; an unknown field is then not listed as ignored."""
        return value is None


class TextFields(Body):
    """Base class of forms and queries, all of whose values are text, so that a blank one counts as missing."""

    @classmethod
    def value_of(cls, rule: FieldRule, raw: Any) -> Any:
        if isinstance(raw, list):
            raw = [text for text in raw if not is_blank(text)] or None
        return None if is_blank(raw) else super().value_of(rule, raw)

    @classmethod
    def has_no_value(cls, value: Any) -> bool:
        return value is None or is_blank(value)


def first_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first MAX_NAMES + 1 names, or all if there are fewer.

    The response header lists at most MAX_NAMES names. The additional one shows that the list was cut.
    """
    return tuple(name for name, _ in zip(names, range(MAX_NAMES + 1), strict=False))


def unknown_fields(body: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the paths of the unknown fields that were dropped from `body` and from nested bodies."""
    if isinstance(body, Body):
        yield from (path + name for name in body._unknown)
    for name, value in body.__dict__.items():
        if isinstance(value, BaseModel):
            yield from unknown_fields(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from unknown_fields(item, f"{path}{name}.{index}.")


def refuse_unknown(body: BaseModel) -> None:
    """Raise ApiError for the first unknown field of `body`."""
    for name in unknown_fields(body):
        param = name.encode(errors="backslashreplace").decode()[:MAX_NAME_CHARS]
        raise ApiError(400, f"{param}: {UNKNOWN}", param, "invalid_value")


class Ignored:
    """Names of request fields without effect, such as unknown ones; a strict gateway raises ApiError instead."""

    def __init__(self, body: BaseModel, is_strict: bool):
        if is_strict:
            refuse_unknown(body)
        self._is_strict = is_strict
        self._names = list(first_names(unknown_fields(body)))

    def add(self, name: str, expected: str, got: object) -> None:
        """Record a field that has no effect; if the gateway is strict, raise ApiError instead."""
        if self._is_strict:
            raise refused(name, expected, got)
        self.record(name)

    def record(self, name: str) -> None:
        """Record a field without effect that even a strict gateway accepts."""
        if name not in self._names and len(self._names) <= MAX_NAMES:
            self._names.append(name)

    @property
    def names(self) -> list[str]:
        """Recorded names, limited in number, length and characters; `...` replaces any others."""
        shown = [UNSAFE.sub("?", "".join(SHOWN.findall(name)[:MAX_SHOWN_CHARS])) for name in self._names[:MAX_NAMES]]
        return shown + ["..."] * (len(self._names) > MAX_NAMES)

    @property
    def headers(self) -> dict[str, str]:
        """Response header that lists the ignored request fields; empty if none were ignored."""
        return {ResponseHeader.IGNORED: ", ".join(self.names)} if self._names else {}


# The server's limits (`records/json_record.py`), checked here to limit memory.
MAX_BYTES = 16 * 1024
MAX_DEPTH = 8
OBJECT_BYTES = 48  # maximum memory per byte of JSON after parsing, because two bytes can be a list
SMALL_BYTES = 1024  # JSON that is always admitted


def most_bytes(value: Any) -> int:
    """Return an upper bound on the size of `value` as JSON (12 bytes per character), without serialising it."""
    if isinstance(value, dict):
        return 2 + sum(4 + most_bytes(name) + most_bytes(item) for name, item in value.items())
    if isinstance(value, list):
        return 2 + sum(2 + most_bytes(item) for item in value)
    if isinstance(value, str):
        return 2 + 12 * len(value)
    return 6 + value.bit_length() // 3 if isinstance(value, int) else 25


def check_json(value: Any, param: str) -> None:
    """Raise ApiError for the field `param` if `value` exceeds the server's JSON limits."""
    depth = 0
    num_values = 1
    level = [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth = depth + 1
        num_values = num_values + sum(map(len, level))
        if depth > MAX_DEPTH:
            raise mismatch(param, f"at most {MAX_DEPTH} levels of JSON", "more")
        if num_values > MAX_BYTES:  # checked before serialising
            raise mismatch(param, f"at most {MAX_BYTES} values of JSON", f"{num_values} values")
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    if most_bytes(value) > MAX_BYTES and (num_bytes := len(json.dumps(value))) > MAX_BYTES:
        raise mismatch(param, f"at most {MAX_BYTES} bytes of JSON", f"{num_bytes} bytes")


def check_options_size(options: dict[str, Any]) -> None:
    """Raise ApiError for the first option that makes the options exceed the server's JSON limits."""
    for name, value in options.items():
        check_json({name: value}, name)
    if most_bytes(options) <= MAX_BYTES:
        return
    num_bytes = 0
    for name, value in options.items():
        num_bytes += len(json.dumps({name: value}))
        if num_bytes > MAX_BYTES:
            raise mismatch(name, f"at most {MAX_BYTES} bytes of JSON in all options", f"{num_bytes} bytes")


def held_bytes(options: Mapping[str, object]) -> int:
    """Return how many bytes stored options occupy beyond the small amount that is always admitted."""
    if most_bytes(dict(options)) <= SMALL_BYTES:
        return 0
    return OBJECT_BYTES * max(0, len(json.dumps(options)) - SMALL_BYTES)


def whole_characters(text: str) -> str:
    """Return `text`; raise ValueError if it contains lone surrogates, which JSON allows but UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text without lone surrogates, got one") from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]
