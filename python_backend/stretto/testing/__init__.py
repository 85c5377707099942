"""Test kit for model families: checkpoints and prompts, a step-by-step engine, a slow reference, a conformance test."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto.testing.conformance import assert_family_conforms
    from stretto.testing.reference_conditions import ReferenceConditions
    from stretto.testing.reference_rule import ReferenceRule

MODULES = {
    "assert_family_conforms": "conformance",
    "ReferenceConditions": "reference_conditions",
    "ReferenceRule": "reference_rule",
}
__all__ = ["ReferenceConditions", "ReferenceRule", "assert_family_conforms"]


def __getattr__(name: str) -> Any:
    """Import the name on first use, because only `conformance` imports vLLM."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
