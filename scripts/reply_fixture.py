"""What the authors' own code of a model replies, as a fixture of the tests: written, or held to the one there is.

For the environments of those authors, too: nothing is imported that Python itself does not bring.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Made = TypeVar("Made")
Replies = list[dict[str, Any]]


def run(
    description: str | None,
    make: Callable[[], Made],
    write: Callable[[Path, Made], None],
    compare: Callable[[Path, Made], None],
) -> None:
    """The command line `fixture [--check]`: `write` the fixture, or only `compare` the one there is with what is made.

    AssertionError, of `compare`, where it says something else.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with what is there, and write nothing")
    args = parser.parse_args()
    made = make()
    (compare if args.check else write)(args.fixture, made)


def equal_in(*names: str) -> Callable[[Path, Replies], None]:
    """Compares a JSON fixture's `replies` with others, one by one: what has these names in each is the same."""

    def compare(fixture: Path, made: Replies) -> None:
        known = json.loads(fixture.read_text())["replies"]
        assert len(made) == len(known), f"{fixture} has {len(known)} replies, made were {len(made)}"
        for at, (reply, there) in enumerate(zip(made, known, strict=True)):
            for name in names:
                assert reply[name] == there[name], f"{fixture}: reply {at} has other {name}"

    return compare
