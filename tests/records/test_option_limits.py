"""Every option is refused outside the limits of the schema; layers above need to show only that they check."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from typing_extensions import get_type_hints, is_typeddict

from stretto.errors import InvalidRequest
from stretto.records.sampling import OPTIONS
from stretto_contract.schema import Expected, OptionsRecord

pytestmark = pytest.mark.slow
LEAST = {"output.ring": {"name": f"stretto_ring_{'0' * 16}"}}  # objects with required keys


def checked(record: Any, path: str = "") -> Iterator[tuple[str, Any, Expected]]:
    """Yield the path, the type and the limits of each option that pydantic checks."""
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        (expected,) = [mark for mark in hint.__metadata__ if isinstance(mark, Expected)]
        if expected.is_checked:
            yield path + name, kind, expected
        if is_typeddict(kind):
            yield from checked(kind, f"{path}{name}.")


def values(path: str, kind: Any, expected: Expected) -> tuple[list[Any], list[Any]]:
    """Return values inside and outside of an option's limits."""
    if get_origin(kind) is Literal:
        return list(get_args(kind)), ["other", 1]
    if is_typeddict(kind):
        return [LEAST.get(path, {})], [2, "warm", []]
    if kind is str:
        return [LEAST["output.ring"]["name"]], [1, ["a"], *(["a"] if expected.pattern else [])]
    if kind is bool:
        return [True, False], [0, "true"]
    step = 1 if kind is int else 1e-7
    lowest = expected.ge if expected.gt is None else expected.gt + step
    ends = [limit for limit in (lowest, expected.le) if limit is not None]
    beyond = [limit + sign * 2 * step for limit, sign in ((lowest, -1), (expected.le, 1)) if limit is not None]
    return [kind(end) for end in ends] or [1], [*map(kind, beyond), "1", True, 1.5 if kind is int else "nan"]


@pytest.mark.parametrize(("path", "kind", "expected"), list(checked(OptionsRecord)), ids=str)
def test_option_is_refused_beyond_its_limits(path: str, kind: Any, expected: Expected) -> None:
    def check(value: Any) -> None:
        *objects, name = path.split(".")
        record = {name: value}
        for outer in reversed(objects):
            record = {outer: LEAST.get("output.ring", {}) | record if outer == "ring" else record}
        OPTIONS.check("options", record)

    inside, outside = values(path, kind, expected)
    for value in inside:
        check(value)
    for value in [*outside, None, [1]]:
        limits = expected.description if type(value) is kind or not expected.kind else expected.kind
        with pytest.raises(InvalidRequest) as caught:
            check(value)
        assert str(caught.value).startswith(f"options.{path}: expected {limits}, got "), value
