"""The rules of `engine/rules.py` as functions that Triton kernels call, `RULES.name`."""

import inspect

import triton
import triton.language as tl

from stretto.engine import rules


@triton.jit
def _where(condition: tl.tensor, chosen: tl.tensor, other: tl.tensor) -> tl.tensor:
    return tl.where(condition, chosen, other)


RULES = rules.with_where(_where)
vars(RULES)["tl"] = tl  # Triton's interpreter looks for it in the globals of each function
for _name, _rule in inspect.getmembers(RULES, inspect.isfunction):
    if _rule.__module__ == rules.__name__ and _name != rules.with_where.__name__:
        setattr(RULES, _name, triton.jit(_rule))
