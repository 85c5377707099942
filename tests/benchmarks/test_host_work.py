"""Instructions are counted exactly, and counting stops afterwards."""

import sys

from benchmarks.scheduler import count_instructions


def loop(number: int) -> None:
    for _ in range(number):
        pass


def test_only_instructions_of_the_called_function_are_counted() -> None:
    one = count_instructions(lambda: loop(1))
    assert count_instructions(lambda: loop(1)) == one
    assert count_instructions(lambda: loop(101)) - one == 100 * (count_instructions(lambda: loop(2)) - one)
    assert sys.gettrace() is None


def test_functions_marked_as_one_count_as_a_single_instruction() -> None:
    def outer(number: int) -> None:
        loop(number)

    def count(number: int) -> int:
        return count_instructions(lambda: (outer(number), loop(3)), lambda code: code is outer.__code__)

    assert count(1) == count(100) > count_instructions(lambda: loop(3))
