"""Ways to join the clauses of a long text."""

from typing import Literal, get_args

Join = Literal["independent", "continued"]
JOINS: tuple[Join, ...] = get_args(Join)
