"""Plug-ins of the families that single benchmarks define; a benchmark is imported when its family is built."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from stretto.families.base import Family
from stretto.families.plugin import FamilyPlugin


def _defined_in(module: str, name: str) -> Callable[[Mapping[str, Any] | None], Family]:
    return lambda vocabulary: getattr(import_module(f"benchmarks.{module}"), name)


CSM = FamilyPlugin("benchmark_csm", _defined_in("frames", "CSM"))
LONG = FamilyPlugin("benchmark_long", _defined_in("long_audio", "LONG"))
MIXED = FamilyPlugin("benchmark_mixed", _defined_in("mixed", "FAMILY"))
PARALLEL = FamilyPlugin("benchmark_parallel", _defined_in("frames", "PARALLEL"))
