"""Each field of each section that a family reads from a config is refused outside its range, with limits and value."""

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.plugin import plugins
from stretto.family.sections import Section

OF_OTHER_TYPES: dict[str, tuple[Any, ...]] = {
    "integer": (True, 1.5, "text", []),
    "number": (True, "text", float("nan"), float("inf")),
    "boolean": (1, "text"),
    "string": (3, True),
    "array": (3, "text"),
    "object": (3, "text", []),
}


def sections(above: type[Section] = Section) -> Iterator[type[Section]]:
    """Yield the sections of all installed families."""
    for plugin in plugins():
        if plugin.convert is not None:
            import_module(plugin.convert)
    for section in above.__subclasses__():
        if section.__module__.startswith("stretto"):
            yield section
            yield from sections(section)


def plain(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema without its reference and its null."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    found: Mapping[str, Any] = choices[0] if len(choices) == 1 else {"type": "any"}
    return root["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found


def smallest(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Return the smallest value that a schema accepts."""
    schema = plain(schema, root)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema["type"] in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    if schema["type"] == "object":
        return {name: smallest(schema["properties"][name], root) for name in schema.get("required", ())}
    if schema["type"] == "array":
        return [smallest(schema["items"], root)] * schema.get("minItems", 0)
    return {"boolean": True, "string": "text"}.get(schema["type"])


def outside(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield values that a schema does not accept."""
    if "const" in schema or "enum" in schema:
        yield "another value"
        return
    yield from OF_OTHER_TYPES.get(schema["type"], ())
    step = schema.get("multipleOf", 1) if schema["type"] == "integer" else 1e-9
    if step > 1:
        yield schema["minimum"] + 1
    for name, sign in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if name in schema:
            yield schema[name] + sign * max(step, abs(schema[name]) * step)


def refusal(section: type[Section], record: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        section.read(record)
    return str(caught.value)


def test_each_field_of_each_family_is_refused_outside_its_range() -> None:
    num_fields = 0
    for section in {*sections()}:
        root = section.model_json_schema()
        record = smallest(root, root)
        for name, described in root["properties"].items():
            schema = plain(described, root)
            num_fields += 1
            for value in outside(schema):
                said = refusal(section, record | {name: value})
                assert re.match(rf"config\.json: {name}(\.\w+)?: expected ", said), (section, said)
                assert said.endswith(f", got {shown(value)}"), (section, said)
                limits = [str(schema[key]) for key in schema if key.endswith("imum")]
                assert all(limit in said for limit in limits), (section, said)
            if name in root.get("required", ()):
                left = {other: value for other, value in record.items() if other != name}
                assert refusal(section, left) == f"config.json: {name} is missing"
    assert num_fields > 50


class Inner(Section):
    width: Annotated[int, Field(ge=1, le=8)]
    kind: Literal["a", "b", None] = None
    speaker_id: dict[str, int] = Field(default_factory=dict)


class Outer(Section):
    ids_below = "num_ids"

    num_ids: int = 3
    start_id: int = 0
    inner: Inner
    sizes: list[Annotated[int, Field(gt=0, le=9)]] = Field(default_factory=list)
    choices: dict[str, str | bool] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.inner.width == 7:
            raise InvalidRequest("inner.width", "another width", 7)
        return self


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "expected an object, got 3"),
        ({}, "inner is missing"),
        ({"inner": None}, "inner: expected an object, got None"),
        ({"inner": {"width": 9}}, "inner.width: expected an integer in [1, 8], got 9"),
        ({"inner": {"width": 7}}, "inner.width: expected another width, got 7"),
        ({"inner": {"width": 1, "kind": "c"}}, "inner.kind: expected 'a' or 'b', got 'c'"),
        ({"inner": {"width": 1}, "sizes": [1, 0]}, "sizes.1: expected an integer in (0, 9], got 0"),
        ({"inner": {"width": 1}, "choices": {"x": 3}}, "choices.x: expected a text or true or false, got 3"),
        ({"inner": {"width": 1}, "start_id": 3}, "start_id: expected an id in [0, 3), got 3"),
    ],
)
def test_error_names_the_field_the_limits_and_the_value(record: object, message: str) -> None:
    assert refusal(Outer, record) == f"config.json: {message}"


def test_ids_in_mappings_are_named() -> None:
    class WithIds(Section):
        ids_below = "num_ids"

        num_ids: int = 2
        speaker_id: dict[str, int]

    assert refusal(WithIds, {"speaker_id": {"ann": 1, "bob": 2}}) == (
        "config.json: speaker_id.bob: expected an id in [0, 2), got 2"
    )


def test_defaults_and_unknown_fields() -> None:
    read = Outer.read({"inner": {"width": 8, "other": 1}})
    assert read.inner.kind is None
    assert read.sizes == []
