"""Steps of two rows: the backbone generates the first one, and a predictor without weights the second one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.mechanism import Mechanism, RowSteps
from stretto.family.plugin import lazy
from stretto_thirds.family import build as build_thirds


class Alternate:
    """Schedule in which each step begins with an even row."""

    max_extra = 1

    def num_extra(self, index: int) -> int:
        """Return 1, because the predictor generates a row after each row of the backbone."""
        return 1

    def next_step(self, index: int) -> int:
        """Return the first even number that is not less than `index`."""
        return index + index % 2


@dataclass(frozen=True)
class TwoRows(RowSteps):
    """Steps of two rows, which a request cannot change."""

    predictor: ClassVar = lazy("stretto_thirds.predictor:SecondRow")
    max_extra: ClassVar[int] = 1
    window: ClassVar[int] = 0  # the predictor keeps nothing
    names: ClassVar[tuple[str, ...]] = ("two",)

    def schedule(self, name: str | Sequence[int] | None) -> Alternate:
        """Return the only schedule."""
        return Alternate()

    def check_numbers(self, numbers: tuple[int, ...]) -> None:
        """Reject a schedule that a request defines."""
        raise InvalidRequest("options.schedule", "the name 'two'", list(numbers))


def build(vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family without streamed text, which needs steps of one row."""
    family = build_thirds(vocabulary)
    return replace(
        family,
        name="fast_thirds",
        layout=replace(family.layout, num_input_only=0),
        track=None,
        mechanism=Mechanism(steps=TwoRows()),
    )
