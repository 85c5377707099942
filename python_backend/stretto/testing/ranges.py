"""Values outside the ranges of a config's fields, and the errors that reject them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stretto.errors import CheckpointError, shown
from stretto.family.sections import Section

OF_OTHER_TYPES: dict[str, tuple[Any, ...]] = {
    "integer": (True, 1.5, "text", []),
    "number": (True, "text", float("nan"), float("inf")),
    "boolean": (1, "text"),
    "string": (3, True),
    "array": (3, "text"),
    "object": (3, "text", []),
}


def plain(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with its reference resolved, and without the alternative `null`."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    choice: Mapping[str, Any] = choices[0] if len(choices) == 1 else {"type": "any"}
    return root["$defs"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice


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
    """Return the error for a record; raise AssertionError if it is accepted."""
    try:
        section.read(record)
    except CheckpointError as error:
        return str(error)
    raise AssertionError(f"{section.__name__}: expected a refusal of {record}")


def assert_refused_outside_ranges(section: type[Section]) -> int:
    """Assert that each field is refused outside its range, by name, limits and value; return the number of fields."""
    root = section.model_json_schema()
    record = smallest(root, root)
    for name, described in root["properties"].items():
        schema = plain(described, root)
        for value in outside(schema):
            said = refusal(section, record | {name: value})
            assert re.match(rf"config\.json: {name}(\.\w+)?: expected ", said), (section, said)
            assert said.endswith(f", got {shown(value)}"), (section, said)
            limits = [str(schema[key]) for key in schema if key.endswith("imum")]
            assert all(limit in said for limit in limits), (section, said)
        if name in root.get("required", ()):
            others = {other: value for other, value in record.items() if other != name}
            assert refusal(section, others) == f"config.json: {name} is missing"
    return len(root["properties"])
