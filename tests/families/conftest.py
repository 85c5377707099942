"""Fixtures of the families' tests."""

from tests.refused_conversion import refuses

__all__ = ["refuses"]
