"""Rules of `engine/rules.py` and of mechanisms as functions that Triton kernels can call (`RULES`)."""

import inspect
from types import ModuleType

import triton
import triton.language as tl

from stretto.engine import rules


@triton.jit
def _where(condition: tl.tensor, chosen: tl.tensor, other: tl.tensor) -> tl.tensor:
    return tl.where(condition, chosen, other)


def device_rules(name: str = rules.__name__) -> ModuleType:
    """Return a copy of a module of rules, whose rules Triton kernels can call."""
    copied = rules.with_where(_where, name)
    vars(copied)["tl"] = tl  # Triton's interpreter looks for it in the globals of each function
    for rule_name, rule in inspect.getmembers(copied, inspect.isfunction):
        if rule.__module__ == name and rule_name != rules.with_where.__name__:
            setattr(copied, rule_name, triton.jit(rule))
    return copied


RULES = device_rules()
