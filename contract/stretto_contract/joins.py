"""How the clauses of a long text are joined."""

from typing import Literal, get_args

Join = Literal["independent", "continued"]
JOINS: tuple[Join, ...] = get_args(Join)
