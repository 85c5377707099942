"""Families by name."""

from python_backend.families.base import Family
from python_backend.families.tiny import TINY

FAMILIES: dict[str, Family] = {family.name: family for family in (TINY,)}


def get_family(name: str) -> Family:
    """The family called `name`; KeyError lists the names there are."""
    if name not in FAMILIES:
        raise KeyError(f"unknown family {name!r}; known: {sorted(FAMILIES)}")
    return FAMILIES[name]
