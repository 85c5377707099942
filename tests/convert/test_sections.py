"""Each field of each section that a family reads from a config is refused outside its range, with limits and value."""

from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from stretto.errors import InvalidRequest
from stretto.family.plugin import plugins
from stretto.family.sections import Section
from stretto.testing.ranges import assert_refused_outside_ranges, refusal


def sections(above: type[Section] = Section) -> Iterator[type[Section]]:
    """Yield the sections of all installed families."""
    for plugin in plugins():
        if plugin.convert is not None:
            import_module(plugin.convert)
    for section in above.__subclasses__():
        if section.__module__.startswith("stretto"):
            yield section
            yield from sections(section)


def test_each_field_of_each_family_is_refused_outside_its_range() -> None:
    assert sum(map(assert_refused_outside_ranges, {*sections()})) > 50


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
