"""Sections of a release's config as classes with the published names of fields and the ranges of their values."""

from collections.abc import Mapping
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stretto.errors import CheckpointError, InvalidRequest, shown

# Ranges that several families have; their limits are above the values of any release.
Integer = Annotated[int, Field(ge=1, le=(1 << 20) - 1)]
Size = Annotated[int, Field(ge=1, le=1 << 16)]
NumLayers = Annotated[int, Field(ge=1, le=1 << 8)]
NumCodebooks = Annotated[int, Field(ge=1, le=64)]
Theta = Annotated[float, Field(gt=0, le=1e9)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Section of a config; families have subclasses with the published fields that they read.

    Other fields are ignored. A check of several fields is a `model_validator` that raises InvalidRequest.

    Attributes:
        ids_below: Dotted path of the number below which all ids must be. Ids are the values of fields whose names end
            in `_id`, and the values of mappings with such names. Empty for a section without ids.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    ids_below: ClassVar[str] = ""

    @classmethod
    def read(cls, record: object, file: str = "config.json") -> Self:
        """Return the section in a parsed config, or raise CheckpointError with the first missing or invalid field."""
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            said = cls._in_words(error.errors(include_url=False)[0])
        raise CheckpointError(f"{file}: {said}")

    @classmethod
    def _in_words(cls, error: ErrorDetails) -> str:
        path, schema = _followed(_json_schema(cls), error["loc"])
        if error["type"] == "value_error":
            return ".".join((*path, str(error["ctx"]["error"])))
        name = ".".join(path)
        if error["type"] == "missing":
            return f"{name} is missing"
        return f"{name}: expected {expected_values(schema)}, got {shown(error['input'])}".removeprefix(": ")

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        num_ids = attrgetter(self.ids_below)(self) if self.ids_below else 0
        for field in type(self).model_fields if num_ids else ():
            value_or_ids = getattr(self, field) if field.endswith("_id") else {}
            named = value_or_ids if isinstance(value_or_ids, dict) else {"": value_or_ids}
            for name, value in named.items():
                if not 0 <= value < num_ids:
                    raise InvalidRequest(f"{field}.{name}".rstrip("."), f"an id in [0, {num_ids})", shown(value))
        return self


@cache
def _json_schema(section: type[Section]) -> Mapping[str, Any]:
    return section.model_json_schema()


def expected_values(schema: Mapping[str, Any]) -> str:
    """Return the description of the values that a JSON schema accepts, without null."""
    accepted = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if accepted:
        return " or ".join(map(expected_values, accepted))
    if "$ref" in schema:
        return NAMES_OF_TYPES["object"]
    choices = [schema["const"]] if "const" in schema else schema.get("enum", ())
    if "description" in schema:
        return str(schema["description"])
    if choices:
        return " or ".join(shown(choice) for choice in choices if choice is not None)
    if schema["type"] == "array":
        return f"a list of {schema.get('minItems', 0)} to {schema.get('maxItems', 'any number of')} values"
    return NAMES_OF_TYPES[schema["type"]] + _range(schema)


NAMES_OF_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "object": "an object",
    "null": "no value",
}


def _range(schema: Mapping[str, Any]) -> str:
    """Return the range of a number, with a space before it; the empty string for other types."""
    lowest = schema.get("minimum", schema.get("exclusiveMinimum"))
    highest = schema.get("maximum", schema.get("exclusiveMaximum"))
    if lowest is None:
        return ""
    multiple = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
    return (
        f" in {'[' if 'minimum' in schema else '('}{lowest}, {highest}{']' if 'maximum' in schema else ')'}{multiple}"
    )


def _followed(root: Mapping[str, Any], location: tuple[int | str, ...]) -> tuple[list[str], Mapping[str, Any]]:
    """Return the path and the JSON schema of the value at a location, given the schema of the whole section.

    In a union, the last step of a location is not part of the path.
    """
    path: list[str] = []
    schema = root
    for step in location:
        outer = _object(root, schema)
        inner = outer.get("items") if isinstance(step, int) else outer.get("properties", {}).get(step)
        inner = inner or outer.get("additionalProperties")
        if not isinstance(inner, Mapping):
            break
        schema = inner
        path.append(str(step))
    return path, schema


def _object(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of an object or a list that may be null or defined elsewhere in `root`."""
    for choice in schema.get("anyOf", ()):
        if choice.get("type") != "null":
            return _object(root, choice)
    return root["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
